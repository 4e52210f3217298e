"""A real server and a real agent as processes of their own, for end-to-end tests.

`Pair` writes their configuration, starts, stops and kills them, and administers through the public API. Everything
lives in one short directory (Unix socket paths hold 107 bytes). Logs are kept there and shown when a start fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import yaml

from ca.proto.burgee import agent_pb2, agent_pb2_grpc
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc, server_entry_pb2, server_entry_pb2_grpc, types_pb2

T = TypeVar("T")
TRUST_DOMAIN = "pair.test"
START_SECONDS = 60.0
"""A program takes two seconds of a processor to start, of which others may have the most. One that ended is not waited
for."""


def until(what: str, probe: Callable[[], T], *, seconds: float = 20.0, every: float = 0.02) -> T:
    """Ask `probe` until it gives something true; fail with `what` and its last exception otherwise."""
    deadline = time.monotonic() + seconds
    last: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            if found := probe():
                return found
            last = None
        except Exception as error:  # whatever the probe meets is reported if it stays
            last = error
        time.sleep(every)
    raise AssertionError(f"not within {seconds:g} s: {what} ({last!r})")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Pair:
    """One server and one agent. Options override the written configuration, key by key."""

    def __init__(
        self, home: Path, *, server: dict[str, Any] | None = None, agent: dict[str, Any] | None = None
    ) -> None:
        self.home = home
        self.port = free_port()
        self.admin_socket = home / "sa" / "admin.sock"
        self.workload_socket = home / "w" / "workload.sock"
        self.agent_admin_socket = home / "aa" / "admin.sock"
        self.bundle_file = home / "bundle.pem"
        self.server_options = server or {}
        self.agent_options = agent or {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    # Processes

    def server_config(self) -> dict[str, Any]:
        return {
            "trust_domain": TRUST_DOMAIN,
            "data_dir": str(self.home / "server"),
            "bind_address": "127.0.0.1",
            "bind_port": self.port,
            "admin_socket": {"path": str(self.admin_socket)},
            "bundle_file": str(self.bundle_file),
            "metrics_address": None,
        } | self.server_options

    def agent_config(self) -> dict[str, Any]:
        return {
            "trust_domain": TRUST_DOMAIN,
            "data_dir": str(self.home / "agent"),
            "servers": [f"127.0.0.1:{self.port}"],
            "workload_socket": str(self.workload_socket),
            "admin_socket": {"path": str(self.agent_admin_socket)},
            "trust": {"bundle_file": str(self.bundle_file)},
            "node_attestor": {"join_token": {"token_file": str(self.home / "token")}},
            "workload_attestors": {"unix": {"path": True}},
            "cache": {"directory": str(self.home / "cache")},
            "metrics_address": None,
        } | self.agent_options

    def launch(self, name: str) -> None:
        """Start `server` or `agent` and wait for nothing."""
        module, config = {
            "server": ("ca.serve", self.server_config),
            "agent": ("sds.agent", self.agent_config),
        }[name]
        self._start(name, module, config())

    def start_server(self) -> None:
        self.launch("server")
        self._until_up("server", "the server administers", lambda: self.count_agents() is not None)

    def start_agent(self, *, token: bool = True) -> None:
        if token and not (self.home / "token").exists():
            (self.home / "token").write_text(self.create_token())
            (self.home / "token").chmod(0o600)
        self.launch("agent")
        self._until_up("agent", "the agent is OK", lambda: self.status().state == "OK")

    def _until_up(self, name: str, what: str, probe: Callable[[], bool]) -> None:
        process = self.processes[name]
        until(what, lambda: process.poll() is not None or probe(), seconds=START_SECONDS)
        assert process.returncode is None, f"the {name} ended with {process.returncode} when it started"

    def _start(self, name: str, module: str, config: dict[str, Any]) -> None:
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        log = (self.home / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(path)], stdout=log, stderr=subprocess.STDOUT
        )
        log.close()

    def stop(self, name: str, *, sign: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(sign)
        try:
            return process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not stop on {sign.name}") from None

    def pid(self, name: str) -> int:
        return self.processes[name].pid

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.processes.clear()

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-4000:]}" for p in self.home.glob("*.log"))

    # Administration

    @contextmanager
    def _channel(self, path: Path) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            yield channel

    def count_agents(self) -> int:
        with self._channel(self.admin_socket) as channel:
            stub = server_agent_pb2_grpc.AgentStub(channel)
            return stub.CountAgents(server_agent_pb2.CountAgentsRequest(), timeout=5).count

    def create_token(self) -> str:
        with self._channel(self.admin_socket) as channel:
            stub = server_agent_pb2_grpc.AgentStub(channel)
            return stub.CreateJoinToken(server_agent_pb2.CreateJoinTokenRequest(ttl=600), timeout=5).value

    def ban_agent(self) -> None:
        with self._channel(self.admin_socket) as channel:
            stub = server_agent_pb2_grpc.AgentStub(channel)
            stub.BanAgent(server_agent_pb2.BanAgentRequest(id=self._id(self.agent_path())), timeout=5)

    def status(self) -> agent_pb2.Status:
        with self._channel(self.agent_admin_socket) as channel:
            return agent_pb2_grpc.AgentStub(channel).GetStatus(agent_pb2.GetStatusRequest(), timeout=5)

    def sds_clients(self) -> list[agent_pb2.SdsClient]:
        with self._channel(self.agent_admin_socket) as channel:
            stub = agent_pb2_grpc.AgentStub(channel)
            return list(stub.ListSdsClients(agent_pb2.ListSdsClientsRequest(), timeout=5).clients)

    def agent_path(self) -> str:
        return self.status().spiffe_id.removeprefix(f"spiffe://{TRUST_DOMAIN}")

    @staticmethod
    def _id(path: str) -> types_pb2.SPIFFEID:
        return types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=path)

    def create_entry(self, path: str, selector: str | None = None, **fields: Any) -> str:
        """An entry under this pair's agent; by default for whoever runs as this test's user. Gives its id."""
        kind, _, value = (selector or f"unix:uid:{os.getuid()}").partition(":")
        entry = types_pb2.Entry(
            spiffe_id=self._id(path),
            parent_id=self._id(self.agent_path()),
            selectors=[types_pb2.Selector(type=kind, value=value)],
            **fields,
        )
        with self._channel(self.admin_socket) as channel:
            stub = server_entry_pb2_grpc.EntryStub(channel)
            answer = stub.BatchCreateEntry(server_entry_pb2.BatchCreateEntryRequest(entries=[entry]), timeout=5)
        result = answer.results[0]
        assert result.status.code == 0, result.status.message
        return result.entry.id

    def set_dns_names(self, entry_id: str, *names: str) -> None:
        """Change what an entry's certificate says, so that it is issued anew."""
        request = server_entry_pb2.BatchUpdateEntryRequest(
            entries=[types_pb2.Entry(id=entry_id, dns_names=names)], input_mask=types_pb2.EntryMask(dns_names=True)
        )
        with self._channel(self.admin_socket) as channel:
            answer = server_entry_pb2_grpc.EntryStub(channel).BatchUpdateEntry(request, timeout=5)
        assert answer.results[0].status.code == 0, answer.results[0].status.message

    def delete_entry(self, entry_id: str) -> None:
        with self._channel(self.admin_socket) as channel:
            stub = server_entry_pb2_grpc.EntryStub(channel)
            stub.BatchDeleteEntry(server_entry_pb2.BatchDeleteEntryRequest(ids=[entry_id]), timeout=5)


@contextmanager
def pair(*, server: dict[str, Any] | None = None, agent: dict[str, Any] | None = None) -> Iterator[Pair]:
    """Both running, and gone afterwards; their logs are printed when the test fails."""
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    made = Pair(home, server=server, agent=agent)
    try:
        made.start_server()
        made.start_agent()
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)
