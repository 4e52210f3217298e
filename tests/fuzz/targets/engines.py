"""What a container engine may say of a container: with rootless podman, a login user says it."""

from __future__ import annotations

from attestor.workload.docker import Config, DockerAttestor
from attestor.workload.engine import read_inspect
from ca.identity.selector import Selector
from tests.fuzz.harness import Target

ID = "3f" * 32
ATTESTOR = DockerAttestor(Config(env=("TIER",)))


def run_engine(data: bytes) -> None:
    try:
        inspected = read_inspect(data, ID)
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    assert ID.encode() in data or b"\\u" in data
    for value in ATTESTOR._values(inspected):
        assert Selector("docker", value).value.isprintable()
        assert not value.startswith("env:") or value.split("=")[0] == "env:TIER"
        value.encode()


_WORDS = ("Id", "Config", "State", "Running", "Image", "Labels", "Env", "TIER=x", ID)
TARGETS = (Target(name="engine", run=run_engine, words=tuple(f'"{word}"'.encode() for word in _WORDS)),)
