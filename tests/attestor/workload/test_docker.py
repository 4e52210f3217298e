"""The docker attestor: which engine it asks, what it makes of the answer, and whom it does not believe."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attestor.workload.container import Container
from attestor.workload.docker import MAX_SELECTORS, Config, DockerAttestor
from attestor.workload.engine import MAX_ANSWER_BYTES
from attestor.workload.run import Outcome, attest_all
from ca.errors import ConfigError, Denied, Unavailable
from ca.runtime.config import from_values
from tests.attestor.processes import pinned
from tests.contracts.attestors import WorkloadSample
from tests.support.engine import StandInEngine, docker_container, podman_container

ID = "3f" * 32
DOCKER = {
    "image_id:registry.example.org/web:1.4",
    f"image_config_digest:sha256:{'ab' * 32}",
    "label:app:web",
    "label:org.opencontainers.image.vendor:Example: Ltd",
}


@cache
def _lasting() -> tuple[StandInEngine, Path]:
    """An engine that stays, and a /proc tree of a process in its only container."""
    engine = StandInEngine()
    engine.runs(docker_container(ID))
    tree = Path(tempfile.mkdtemp(prefix="proc-"))
    for directory in (tree, engine.path.parent):
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    (tree / "cgroup").write_text(f"0::/system.slice/docker-{ID}.scope\n")
    return engine, tree


def contract_sample() -> WorkloadSample:
    engine, tree = _lasting()
    return WorkloadSample(config={"docker_socket_path": str(engine.path)}, tree=tree)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[StandInEngine]:
    made = StandInEngine(tmp_path / "docker.sock")
    yield made
    made.close()


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[StandInEngine]:
    made = StandInEngine(tmp_path / str(os.getuid()) / "podman.sock")
    yield made
    made.close()


def attestor(
    directory: Path, *, container_id: str | None = ID, login_uid: int | None = None, **config: Any
) -> DockerAttestor:
    """For processes of one container; sockets are below `directory`."""
    values = {
        "docker_socket_path": str(directory / "docker.sock"),
        "podman_socket_path": str(directory / str(os.getuid()) / "podman.sock"),
        "podman_socket_path_template": f"{directory}/%d/podman.sock",
        "cache_seconds": 0,
        **config,
    }
    found = container_id and Container(pod_uid=None, container_id=container_id, login_uid=login_uid)
    return DockerAttestor(from_values(values, Config), find=lambda proc: found or None)


async def values(made: DockerAttestor) -> set[str]:
    with pinned(os.getpid()) as process:
        return {selector.value for selector in await made.attest(process)}


async def outcome(made: DockerAttestor) -> Outcome:
    """With its notes."""
    with pinned(os.getpid()) as process:
        found = await attest_all({"docker": made, "other": _Nothing()}, process)
    return found.outcomes[0]


class _Nothing:
    async def attest(self, process: Any) -> frozenset[Any]:
        return frozenset()


async def test_what_docker_says_of_the_container(tmp_path: Path, engine: StandInEngine) -> None:
    engine.runs(docker_container(ID))
    assert await values(attestor(tmp_path)) == DOCKER
    assert engine.asked == [f"/containers/{ID}/json"]


async def test_only_named_variables_become_selectors(tmp_path: Path, engine: StandInEngine) -> None:
    """The others are where people keep secrets; a name is a whole name."""
    engine.runs(docker_container(ID))
    found = await values(attestor(tmp_path, env=["TIER", "TOKE", "NONE"]))
    assert found == DOCKER | {"env:TIER=front"}


async def test_what_podman_says(tmp_path: Path, engine: StandInEngine, podman: StandInEngine) -> None:
    """Each engine is asked, as an id says nothing of whose it is."""
    podman.runs(podman_container(ID, Labels={"app": "db"}))
    found = await values(attestor(tmp_path))
    assert found == {DOCKER_IMAGE, f"image_config_digest:sha256:{'cd' * 32}", "label:app:db"}
    assert len(engine.asked) == len(podman.asked) == 1


DOCKER_IMAGE = "image_id:registry.example.org/web:1.4"


async def test_an_engine_that_is_not_installed_is_passed_over(tmp_path: Path, podman: StandInEngine) -> None:
    podman.runs(podman_container(ID))
    assert DOCKER_IMAGE in await values(attestor(tmp_path))
    assert await values(attestor(tmp_path, container_id="00" * 32)) == set()


async def test_no_engine_at_all_is_a_failure_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await values(attestor(tmp_path))
    assert caught.value.reason == "ENGINE_MISSING"
    assert await values(attestor(tmp_path, container_id=None)) == set()  # and whoever is in no container needs none


async def test_a_container_of_a_login_user_is_his_word(tmp_path: Path, podman: StandInEngine) -> None:
    podman.runs(podman_container(ID, Labels={"app": "bank"}))
    me = os.getuid()
    told = await outcome(attestor(tmp_path, login_uid=me))
    assert told.selectors == frozenset()
    assert any("rootless_uids" in note.value for note in told.notes)
    assert podman.asked == []
    assert "label:app:bank" in await values(attestor(tmp_path, login_uid=me, rootless_uids=[me]))


async def test_a_login_users_socket_must_be_his_own(tmp_path: Path) -> None:
    """A link from his directory to another's socket makes the agent talk to nobody but him."""
    other = os.getuid() + 1
    engine = StandInEngine(tmp_path / str(other) / "podman.sock")
    engine.runs(podman_container(ID))
    try:
        with pytest.raises(Unavailable) as caught:
            await values(attestor(tmp_path, login_uid=other, rootless_uids=[other]))
        assert f"not {other}" in caught.value.detail
        assert engine.asked == []
    finally:
        engine.close()


async def test_a_login_users_container_is_not_asked_for_at_roots_engine(tmp_path: Path, engine: StandInEngine) -> None:
    engine.runs(docker_container(ID))
    me = os.getuid()
    with pytest.raises(Unavailable):
        await values(attestor(tmp_path, login_uid=me, rootless_uids=[me]))
    assert engine.asked == []


def _without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


GOOD = docker_container(ID)
WRONG: dict[str, Any] = {
    "another": docker_container("00" * 32),
    "no id": _without(GOOD, "Id"),
    "no config": _without(GOOD, "Config"),
    "no state": _without(GOOD, "State"),
    "a list": [GOOD],
    "labels are a list": docker_container(ID, Labels=["app=web"]),
    "a label is a number": docker_container(ID, Labels={"app": 1}),
    "env is a mapping": docker_container(ID, Env={"A": "b"}),
    "image is a list": docker_container(ID, Image=["x"]),
    "half a character": docker_container(ID, Labels={"app": "\ud800"}),
}


@pytest.mark.parametrize("document", WRONG.values(), ids=WRONG)
async def test_what_is_no_description_of_this_container_is_refused(
    tmp_path: Path, engine: StandInEngine, document: Any
) -> None:
    engine.answer = lambda path: (200, json.dumps(document).encode())
    with pytest.raises(Unavailable) as caught:
        await values(attestor(tmp_path))
    assert caught.value.reason == "ENGINE_ANSWER"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, b"{}"), "ENGINE_ANSWER"),
        ((301, b""), "ENGINE_ANSWER"),
        ((200, b""), "ENGINE_ANSWER"),
        ((200, b"\xff{"), "ENGINE_ANSWER"),
        ((200, b"[" * 200_000), "ENGINE_ANSWER"),
        ((200, b" " * (MAX_ANSWER_BYTES + 1)), "HTTP_TOO_LARGE"),
    ],
)
async def test_junk_is_refused(tmp_path: Path, engine: StandInEngine, answer: tuple[int, bytes], reason: str) -> None:
    engine.answer = lambda path: answer
    with pytest.raises(Unavailable) as caught:
        await values(attestor(tmp_path))
    assert caught.value.reason == reason


async def test_a_container_that_starts_is_waited_for_and_one_that_does_not_run_is_refused(
    tmp_path: Path, engine: StandInEngine
) -> None:
    container = engine.runs(docker_container(ID))
    container["State"]["Running"] = False
    with pytest.raises(Unavailable) as caught:
        await values(attestor(tmp_path, timeout_seconds=0.2))
    assert caught.value.reason == "CONTAINER_NOT_RUNNING"
    running = docker_container(ID)
    answers = iter([container, container, running])
    engine.answer = lambda path: (200, json.dumps(next(answers)).encode())
    assert await values(attestor(tmp_path, timeout_seconds=30)) == DOCKER


async def test_an_engine_that_hangs_is_given_up(tmp_path: Path, engine: StandInEngine) -> None:
    free = threading.Event()

    def hang(path: str) -> tuple[int, bytes]:
        free.wait(30)
        return 404, b"{}"

    engine.answer = hang
    try:
        with pytest.raises(Unavailable) as caught:
            await values(attestor(tmp_path, timeout_seconds=0.2))
        assert caught.value.reason == "HTTP_UNREACHABLE"
    finally:
        free.set()


async def test_a_crowd_of_one_container_asks_once(tmp_path: Path, engine: StandInEngine) -> None:
    engine.runs(docker_container(ID))
    made = attestor(tmp_path, cache_seconds=60)
    assert await asyncio.gather(*(values(made) for _ in range(50))) == [DOCKER] * 50
    assert await values(made) == DOCKER
    assert len(engine.asked) == 1


async def test_what_was_said_is_used_for_a_moment_and_a_failure_is_not(tmp_path: Path, engine: StandInEngine) -> None:
    now = 0.0
    made = attestor(tmp_path, cache_seconds=2)
    made._monotonic = lambda: now
    engine.answer = lambda path: (500, b"")
    with pytest.raises(Unavailable):
        await values(made)
    engine.answer = None
    engine.runs(docker_container(ID))
    assert await values(made) == DOCKER
    engine.runs(docker_container(ID, Labels={}))
    now = 1.9
    assert await values(made) == DOCKER
    now = 2.0
    assert "label:app:web" not in await values(made)


async def test_what_is_not_used_any_more_is_not_remembered(tmp_path: Path, engine: StandInEngine) -> None:
    """A login user may make a thousand cgroups with names of containers, and what he answers for them is long."""
    now = 0.0
    made = attestor(tmp_path, cache_seconds=2)
    made._monotonic = lambda: now
    for number in range(4):
        container = Container(pod_uid=None, container_id=f"{number:064x}")
        made._find = lambda proc, found=container: found  # type: ignore[misc]
        engine.runs(docker_container(container.container_id))
        await values(made)
        now += 1.0
    assert len(made._known) == 2


async def test_labels_without_end_are_left_out_and_it_is_noted(tmp_path: Path, engine: StandInEngine) -> None:
    engine.runs(docker_container(ID, Labels={f"l{n}": "x" for n in range(MAX_SELECTORS)}))
    told = await outcome(attestor(tmp_path))
    assert {selector.value.partition(":")[0] for selector in told.selectors} == {"image_id", "image_config_digest"}
    assert any(note.what == "selectors" for note in told.notes)
    engine.runs(docker_container(ID, Labels={"long": "x" * 5000, "bell": "a\x07\nb", "app": "web"}))
    found = await values(attestor(tmp_path))
    assert {value for value in found if value.startswith("label:")} == {"label:app:web"}


async def test_a_container_that_cannot_be_told_is_refused(tmp_path: Path, engine: StandInEngine) -> None:
    def ambiguous(proc: int) -> Container:
        raise Denied("several", reason="CONTAINER_AMBIGUOUS")

    made = DockerAttestor(from_values({}, Config), find=ambiguous)
    with pytest.raises(Denied):
        await values(made)


@pytest.mark.parametrize(
    "wrong",
    [
        {"podman_socket_path_template": "/run/podman.sock"},
        {"podman_socket_path_template": "/%d/%d"},
        {"podman_socket_path_template": "/%s/%d"},
        {"env": ["A=b"]},
        {"env": [""]},
        {"timeout_seconds": 0},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_values(wrong, Config)
