"""Errors, limits, request ids and metrics of the RPCs, seen by a real client."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from ca import errors
from ca.errors import BurgeeError, Code, Denied, FailedPrecondition, Internal
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc, types_pb2
from ca.runtime import log
from ca.runtime.metrics import REGISTRY
from ca.runtime.rpc import PENDING_CALLS, connect, grpc_server
from ca.runtime.rpc_errors import DETAILS_KEY, STATUS_CODES, status_details
from ca.runtime.rpc_handlers import wrap
from ca.runtime.rpc_observer import Observed
from tests.ca.runtime.rig import call, family, rig, until


def subclasses(kind: type[BurgeeError]) -> list[type[BurgeeError]]:
    """The family itself; what a program derives for its own use (`burgee up` does) never meets the wire."""
    own = (child for child in kind.__subclasses__() if child.__module__ == BurgeeError.__module__)
    return [kind, *(found for child in own for found in subclasses(child))]


def details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    (value,) = (value for key, value in error.trailing_metadata() if key == DETAILS_KEY)
    return status_pb2.Status.FromString(value)


async def refusal(channel: grpc.aio.Channel, name: str, method: str = "Fail") -> grpc.aio.AioRpcError:
    if method == "Fail":
        answer = call(channel, "Fail", name.encode())
    elif method == "Watch":
        stream = channel.unary_stream("/test.Probe/Watch")(name.encode())
        await stream.read()
        answer = stream.read()
    else:
        echo = channel.stream_stream("/test.Probe/Echo")()
        await echo.write(b"!" + name.encode())
        answer = echo.read()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer
    return refused.value


@pytest.mark.parametrize("method", ["Fail", "Watch", "Echo"])
async def test_an_error_of_the_family_reaches_the_caller_with_reason_and_hint(method: str) -> None:
    async with rig() as it, it.unix_channel() as channel:
        error = await refusal(channel, "input", method)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "`x` is not a number"
        found = family(error)
        assert isinstance(found, errors.InvalidArgument)
        assert (found.reason, found.hint) == ("NOT_A_NUMBER", "use digits")
        info = error_details_pb2.ErrorInfo()
        assert details_of(error).details[0].Unpack(info)
        assert info.metadata["request_id"]


async def test_a_banned_agent_gets_the_details_that_a_spire_agent_acts_on() -> None:
    async with rig() as it, it.unix_channel() as channel:
        error = await refusal(channel, "banned")
        status = details_of(error)
        assert (status.code, status.message) == (7, "agent is banned")
        assert [detail.type_url for detail in status.details] == [
            "type.googleapis.com/spire.api.types.PermissionDeniedDetails"
        ]
        denied = types_pb2.PermissionDeniedDetails()
        status.details[0].Unpack(denied)
        assert denied.reason == types_pb2.PermissionDeniedDetails.AGENT_BANNED
        assert isinstance(family(error), Denied)
        assert family(error).reason == "AGENT_BANNED"


@pytest.mark.parametrize("name", ["input", "banned"])
async def test_every_refusal_carries_the_id_of_its_call(name: str) -> None:
    """What a refused caller is told leads administrators to the rest."""
    async with rig() as it, it.unix_channel() as channel:
        error = await refusal(channel, name)
        found = family(error).request_id
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", found)
        assert found.startswith(log.run_id())


@pytest.mark.parametrize("method", ["Fail", "Watch", "Echo"])
async def test_no_traceback_and_no_secret_reaches_a_caller(method: str, capsys: Any) -> None:
    log.configure("json", "info")
    async with rig() as it, it.unix_channel() as channel:
        error = await refusal(channel, "crash", method)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in repr(error)
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        (line,) = (line for line in lines if line["event"] == "rpc failed")
        assert "hunter2" in line["exception"]
        assert error.details() == f"internal error (request {line['request_id']})"


def test_every_code_and_every_error_of_the_family_has_its_status() -> None:
    assert set(STATUS_CODES) == set(Code)
    for kind in subclasses(BurgeeError):
        error = kind("what happened", hint="do this")
        status = status_pb2.Status.FromString(status_details(error, "r-1"))
        assert status.code == STATUS_CODES[error.code].value[0] == errors.STATUS[error.code][0]
        assert status.message == "what happened"


async def test_what_other_servers_say_becomes_the_nearest_error_of_the_family() -> None:
    def made(code: grpc.StatusCode, *trailers: tuple[str, bytes]) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details="text")

    for kind in subclasses(BurgeeError):
        assert family(made(STATUS_CODES[kind.code])).code is kind.code
    assert family(made(grpc.StatusCode.DEADLINE_EXCEEDED)).code is Code.UNAVAILABLE
    assert isinstance(family(made(grpc.StatusCode.DATA_LOSS)), Internal)
    broken = family(made(grpc.StatusCode.NOT_FOUND, (DETAILS_KEY, b"\xff\xff")))
    assert (broken.code, broken.detail, broken.reason) == (Code.NOT_FOUND, "text", "NOT_FOUND")


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_rpcs_are_counted_by_method_code_and_reason_and_unknown_methods_make_no_labels() -> None:
    async with rig() as it, it.unix_channel() as channel:
        fail, who = "/test.Probe/Fail", "/test.Probe/Who"
        before = count("burgee_rpc_total", method=who, code="OK")
        refused = count("burgee_rpc_refused_total", method=fail, reason="LIMIT")
        exhausted = count("burgee_rpc_total", method=fail, code="ResourceExhausted")
        await call(channel, "Who")
        await refusal(channel, "limit")
        assert count("burgee_rpc_total", method=who, code="OK") == before + 1
        assert count("burgee_rpc_refused_total", method=fail, reason="LIMIT") == refused + 1
        assert count("burgee_rpc_total", method=fail, code="ResourceExhausted") == exhausted + 1
        for name in ("x", "y"):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/made.Up/{name}")(b"", timeout=5)
        methods = {s.labels.get("method", "") for m in REGISTRY.collect() for s in m.samples}
        assert not any(method.startswith("/made.Up/") for method in methods)


async def test_open_streams_are_counted_until_they_end() -> None:
    async with rig() as it, it.unix_channel() as channel:
        labels = {"method": "/test.Probe/Watch"}
        stream = channel.unary_stream("/test.Probe/Watch")(b"")
        await stream.read()
        assert count("burgee_rpc_streams", **labels) == 1
        cancelled = count("burgee_rpc_total", code="Cancelled", **labels)
        stream.cancel()
        await until(lambda: count("burgee_rpc_streams", **labels) == 0)
        await until(lambda: count("burgee_rpc_total", code="Cancelled", **labels) == cancelled + 1)


async def test_a_long_message_is_cut_to_what_a_client_takes() -> None:
    async with rig() as it:
        assert it.private.parent.stat().st_mode & 0o777 == 0o700
    status = status_pb2.Status.FromString(status_details(Denied("x" * 100_000)))
    assert len(status.message) == 2048


async def test_a_server_in_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(FailedPrecondition) as refused:
        grpc_server(tmp_path / "grpc.sock")
    assert refused.value.reason == "NOT_PRIVATE"


def test_a_handler_that_is_not_async_is_a_fault_that_shows() -> None:
    blocking = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    with pytest.raises(TypeError, match="not async"):
        wrap([Observed()], "/a/b", blocking)


async def test_what_a_servicer_leaves_out_is_unimplemented(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = grpc_server(tmp_path / "s")
    server_agent_pb2_grpc.add_AgentServicer_to_server(server_agent_pb2_grpc.AgentServicer(), server)
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        agents = server_agent_pb2_grpc.AgentStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as one:
            await agents.CountAgents(server_agent_pb2.CountAgentsRequest(), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            await agents.AttestAgent(timeout=10).read()
    await server.stop(0)
    assert {one.value.code(), stream.value.code()} == {grpc.StatusCode.UNIMPLEMENTED}


class Counting(server_agent_pb2_grpc.AgentServicer):  # type: ignore[misc]
    """Remembers in which order its methods began."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    async def CountAgents(self, request: Any, context: Any) -> server_agent_pb2.CountAgentsResponse:
        self.begun.append("CountAgents")
        return server_agent_pb2.CountAgentsResponse()

    async def ListAgents(self, request: Any, context: Any) -> server_agent_pb2.ListAgentsResponse:
        self.begun.append("ListAgents")
        return server_agent_pb2.ListAgentsResponse()


@pytest.mark.parametrize(
    "queued", [None, frozenset({"/spire.api.server.agent.v1.Agent/CountAgents"}), frozenset[str]()]
)
async def test_a_call_waits_for_calls_in_the_same_queue_alone(tmp_path: Path, queued: frozenset[str] | None) -> None:
    tmp_path.chmod(0o700)
    server = grpc_server(tmp_path / "s", queued=queued)
    servicer = Counting()
    server_agent_pb2_grpc.add_AgentServicer_to_server(servicer, server)
    await server.start()
    with grpc.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        agents = server_agent_pb2_grpc.AgentStub(channel)
        await asyncio.to_thread(agents.ListAgents, server_agent_pb2.ListAgentsRequest(), timeout=10)
        servicer.begun.clear()
        begun = [agents.ListAgents.future(server_agent_pb2.ListAgentsRequest(), timeout=60) for _ in range(200)]
        time.sleep(0.5)  # noqa: ASYNC251 (the server's loop stands still until all have arrived)
        begun.append(agents.CountAgents.future(server_agent_pb2.CountAgentsRequest(), timeout=60))
        time.sleep(0.5)  # noqa: ASYNC251
        codes = await asyncio.to_thread(lambda: {future.code() for future in begun})
    await server.stop(0)
    assert codes == {grpc.StatusCode.OK}
    before = servicer.begun.index("CountAgents")
    assert before == 200 if queued == frozenset() else before < 10


async def test_calls_that_come_while_the_server_is_busy_wait_and_none_is_cancelled(tmp_path: Path) -> None:
    """gRPC's own limit is a thousand; beyond it some are cancelled at random."""

    async def answer(request: Any, context: Any) -> bytes:
        return b""

    calls = PENDING_CALLS - 100
    tmp_path.chmod(0o700)
    server = grpc_server(tmp_path / "s")
    handlers = {"answer": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    await server.start()
    with grpc.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        method = channel.unary_unary("/t.T/answer")
        await asyncio.to_thread(method, b"", timeout=10)
        begun = [method.future(b"", timeout=60) for _ in range(calls)]  # the server's loop stands still meanwhile
        time.sleep(2)  # noqa: ASYNC251 (and until all have arrived)
        codes = await asyncio.to_thread(lambda: {future.code() for future in begun})
    await server.stop(0)
    assert codes == {grpc.StatusCode.OK}


async def test_connect_sends_its_header_with_calls_of_every_shape(tmp_path: Path) -> None:
    seen: list[str] = []

    async def one(request: Any, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()).get("workload.spiffe.io", ""))
        return b""

    async def many(request: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata()).get("workload.spiffe.io", ""))
        yield b""

    tmp_path.chmod(0o700)
    server = grpc_server(tmp_path / "s")
    handlers = {
        "uu": grpc.unary_unary_rpc_method_handler(one),
        "us": grpc.unary_stream_rpc_method_handler(many),
        "su": grpc.stream_unary_rpc_method_handler(one),
        "ss": grpc.stream_stream_rpc_method_handler(many),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    await server.start()
    async with connect(tmp_path / "s", header={"workload.spiffe.io": "true"}) as channel:
        await channel.unary_unary("/t.T/uu")(b"")
        await channel.unary_stream("/t.T/us")(b"").read()
        await channel.stream_unary("/t.T/su")(iter([b""]))
        await channel.stream_stream("/t.T/ss")(iter([b""])).read()
    async with connect(tmp_path / "s") as channel:
        await channel.unary_unary("/t.T/uu")(b"")
    assert seen == ["true"] * 4 + [""]
    await server.stop(0)
