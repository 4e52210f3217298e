"""What an agent that nobody asks for anything has loaded: each module is memory on every node."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from ca.proto.spire import agent_logger_pb2, agent_logger_pb2_grpc
from tests.support.pair import Pair, until

TELLING = """
import os, runpy, signal, sys
def tell(*_):
    with open({path!r} + ".new", "w") as file:
        print(*sys.modules, file=file)
    os.replace({path!r} + ".new", {path!r})
signal.signal(signal.SIGUSR1, tell)
runpy.run_module("sds.agent", run_name="__main__", alter_sys=True)
"""

OWN = (
    "policy.compile",
    "policy.evaluate",
    "policy.explain",
    "policy.parse",
    "policy.ext_authz",
    "sds.policy_read",
    "sds.policy_filters",
    "sds.authz_checks",
    "sds.explain_api",
    "sds.doctor",
    "sds.delegated",
    "sds.debug_api",
    "sds.logger_api",
    "sds.polling",
    "ca.runtime.debug_report",
    "ca.runtime.decision_service",
    "ca.runtime.https",
    "ca.runtime.kube",
)
OTHERS = (
    "bz2",
    "difflib",
    "encodings.idna",
    "envoy",
    "google.protobuf.descriptor_pb2",
    "google.protobuf.internal.python_message",
    "google.protobuf.json_format",
    "google.protobuf.text_format",
    "gzip",
    "grpc_reflection.v1alpha",
    "http.client",
    "http.server",
    "lzma",
    "rich",
    "socketserver",
    "sqlalchemy",
    "urllib.request",
)
CONFIGURED = {"attestor.node.join_token", "attestor.workload.run", "attestor.workload.unix"}
"""And what these import: `unix` with its `path` looks at executables."""
BELOW = {"attestor.workload.executable", "attestor.workload.names", "attestor.workload.procfs"}


class TellingPair(Pair):
    """Its agent writes what it has loaded when it gets SIGUSR1."""

    def _start(self, name: str, module: str, config: dict[str, Any]) -> None:
        if name != "agent":
            super()._start(name, module, config)
            return
        path = self.home / "agent.yaml"
        path.write_text(yaml.safe_dump(config))
        code = TELLING.format(path=str(self.home / "modules"))
        with (self.home / "agent.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", code, "--config", str(path)], stdout=log, stderr=subprocess.STDOUT
            )

    def modules(self) -> set[str]:
        told = self.home / "modules"
        told.unlink(missing_ok=True)
        self.processes["agent"].send_signal(signal.SIGUSR1)
        until("the agent tells its modules", told.exists)
        return set(told.read_text().split())


@pytest.fixture
def pair() -> Iterator[TellingPair]:
    with tempfile.TemporaryDirectory(prefix="bg-") as home:
        made = TellingPair(Path(home))
        try:
            made.start_server()
            made.start_agent()
            yield made
        finally:
            made.close()


def test_an_idle_agent_has_loaded_only_what_it_needs(pair: TellingPair) -> None:
    until("the agent is in step", lambda: pair.status().last_sync_at)
    loaded = pair.modules()
    assert not loaded & {*OWN, *OTHERS}
    plugins = {name for name in loaded if name.startswith(("attestor.node.", "attestor.workload."))}
    assert plugins == CONFIGURED | BELOW

    with grpc.insecure_channel(f"unix:{pair.agent_admin_socket}") as channel:
        logger = agent_logger_pb2_grpc.LoggerStub(channel)
        assert logger.GetLogger(agent_logger_pb2.GetLoggerRequest(), timeout=5).current_level
    assert pair.modules() & {*OWN} == {"sds.logger_api"}, "and nothing else for who asks for that"


@pytest.mark.parametrize("name", OWN)
def test_what_is_not_loaded_exists(name: str) -> None:
    assert importlib.util.find_spec(name) is not None
