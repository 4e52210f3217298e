"""A socket of another kind than the command wants: the hint says which it is and which it should be."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.ca.cli.conftest import Caadmin
from tests.support.pair import Pair

SERVER, AGENT, WORKLOAD = "the server's admin socket", "the agent's admin socket", "the agent's Workload API"
COMMANDS = {
    "--socket": (SERVER, ["entry", "list"]),
    "--agent-socket": (AGENT, ["agent", "sds"]),
    "--endpoint": (WORKLOAD, ["svid", "fetch"]),
}


def sockets(running: Pair) -> dict[str, Path]:
    return {SERVER: running.admin_socket, AGENT: running.agent_admin_socket, WORKLOAD: running.workload_socket}


@pytest.mark.parametrize("option", COMMANDS)
@pytest.mark.parametrize("given", [SERVER, AGENT, WORKLOAD])
def test_one_that_was_taken_for_another(caadmin: Caadmin, running: Pair, option: str, given: str) -> None:
    wanted, command = COMMANDS[option]
    path = sockets(running)[given]
    ran = caadmin(*command, option, f"unix://{path}" if option == "--endpoint" else str(path))
    if given == wanted:
        assert "UNKNOWN_METHOD" not in ran.err
        return
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: unknown service or method (UNKNOWN_METHOD)",
        f"hint: that is {given}; {option} wants {wanted}",
    ]


def test_minting_which_tries_two_calls_says_so_too(caadmin: Caadmin, running: Pair) -> None:
    socket = str(running.agent_admin_socket)
    ran = caadmin("svid", "mint", "x509", "--spiffe-id", "spiffe://pair.test/x", "--socket", socket)
    assert f"hint: that is {AGENT}; --socket wants {SERVER}" in ran.err


@pytest.fixture
def stranger() -> Iterator[Path]:
    """A gRPC server that knows nothing."""
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_insecure_port(f"unix:{directory}/s")
    server.start()
    yield directory / "s"
    server.stop(None).wait()
    shutil.rmtree(directory)


def test_somebody_else(caadmin: Caadmin, stranger: Path) -> None:
    ran = caadmin("entry", "list", "--socket", str(stranger))
    assert (ran.code, ran.err.splitlines()[-1]) == (
        1,
        f"hint: what answers there is neither server nor agent; --socket wants {SERVER}",
    )


def test_a_server_without_the_call(caadmin: Caadmin, running: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an older one."""
    monkeypatch.setattr("ca.proto.burgee.admin_pb2_grpc.AdminStub.__init__", _asks_what_no_server_knows)
    ran = caadmin("issued", "--socket", str(running.admin_socket))
    assert ran.err.splitlines()[-1].startswith("hint: what answers there has no such call")


def _asks_what_no_server_knows(stub: object, channel: grpc.Channel) -> None:
    call = channel.unary_stream("/burgee.admin.v1.Admin/FromTheFuture")
    stub.ListIssued = lambda request, timeout: call(b"", timeout=timeout)  # type: ignore[attr-defined]
