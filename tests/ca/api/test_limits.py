"""What one caller may ask for, and what it is told when that was too much."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from ca.api import limits
from ca.api.limits import RENEWALS_PER_SECOND, Limits
from ca.errors import BurgeeError, Code
from ca.proto.burgee import admin_pb2, node_pb2
from ca.proto.spire import server_agent_pb2, server_svid_pb2
from ca.runtime.rpc import error_of
from tests.support.server import RunningServer, entry, eventually, make_csr, running_server


@asynccontextmanager
async def limited(**limits: float) -> AsyncIterator[RunningServer]:
    async with running_server(limits={"burst_seconds": 1, **limits}) as server:
        yield server


async def refusal(call: Any) -> BurgeeError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    pushback = dict(refused.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]
    error = error_of(refused.value)
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert error.retry_after_seconds == int(pushback) / 1000
    return error


async def test_attestations_of_one_address() -> None:
    async with limited(attestations_per_second_per_address=2) as server:
        for _ in range(2):
            await server.attest()
        token = await server.token()
        error = await refusal(server.attest(token=token))
        assert error.reason == "RATE_LIMITED"
        assert error.retry_after_seconds is not None
        assert 0 < error.retry_after_seconds < 1
        await asyncio.sleep(error.retry_after_seconds)
        await server.attest(token=token)  # which the refusal has not used up


async def test_signatures_are_counted_by_request_for_each_agent() -> None:
    async with limited(x509_svids_per_second_per_agent=3, jwt_svids_per_second_per_agent=1) as server:
        first, caller = await server.agent()
        second, other = await server.agent()
        (made, neighbours) = await server.create(entry("/w", first.path), entry("/w", second.path))
        params = [server_svid_pb2.NewX509SVIDParams(entry_id=made.id, csr=make_csr())] * 3
        batch = server_svid_pb2.BatchNewX509SVIDRequest(params=params)
        await caller.svids.BatchNewX509SVID(batch)
        assert (await refusal(caller.svids.BatchNewX509SVID(batch))).reason == "RATE_LIMITED"
        renewal = server_agent_pb2.RenewAgentRequest(params=server_agent_pb2.AgentX509SVIDParams(csr=make_csr()))
        await refusal(caller.agents.RenewAgent(renewal))
        token = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
        await caller.svids.NewJWTSVID(token)
        await refusal(caller.svids.NewJWTSVID(token))
        # The neighbour behind the same address is served.
        params = [server_svid_pb2.NewX509SVIDParams(entry_id=neighbours.id, csr=make_csr())]
        await other.svids.BatchNewX509SVID(server_svid_pb2.BatchNewX509SVIDRequest(params=params))


async def test_renewals_of_one_agent() -> None:
    """Each is remembered until its end: a stolen SVID could fill memory and log with five hundred a second."""
    async with limited() as server:
        _, caller = await server.agent()
        _, other = await server.agent()
        renewal = server_agent_pb2.RenewAgentRequest(params=server_agent_pb2.AgentX509SVIDParams(csr=make_csr()))
        began = time.monotonic()
        outcomes = await asyncio.gather(*(caller.agents.RenewAgent(renewal) for _ in range(30)), return_exceptions=True)
        refused = [error_of(one) for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
        assert {error.reason for error in refused} == {"RATE_LIMITED"}
        assert 30 - len(refused) <= RENEWALS_PER_SECOND * (2 + time.monotonic() - began)
        await other.agents.RenewAgent(renewal)


async def test_signatures_of_all_behind_one_address() -> None:
    async with limited(signatures_per_second_per_address=1) as server:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))
        token = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
        await caller.svids.NewJWTSVID(token)
        await refusal(caller.svids.NewJWTSVID(token))


async def test_statuses() -> None:
    async with limited(status_posts_per_second_per_agent=1) as server:
        _, caller = await server.agent()
        await caller.agents.PostStatus(server_agent_pb2.PostStatusRequest(agent_version="1"))
        await refusal(caller.agents.PostStatus(server_agent_pb2.PostStatusRequest(agent_version="1")))


async def end_of(stream: Any) -> None:
    async with asyncio.timeout(10):
        while await stream.read() is not grpc.aio.EOF:
            pass
        await stream.wait_for_connection()


async def test_requests_on_a_push_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst passes, one more ends the stream, and the neighbour's goes on."""
    monkeypatch.setattr(limits, "ACKS_PER_SECOND", 0.1)
    monkeypatch.setattr(limits, "ACKS_AT_ONCE", 5.0)
    async with limited() as server:
        _, caller = await server.agent()
        _, neighbour = await server.agent()
        stream, other = await opened(caller), await opened(neighbour)
        requests = [node_pb2.Ack(kind="entry", revision=1), None]  # one that acknowledges nothing counts as well
        for number in range(5):
            await stream.write(node_pb2.SyncRequest(ack=requests[number % 2]))
        await asyncio.sleep(0.5)
        assert not stream.done()
        await stream.write(node_pb2.SyncRequest())
        error = await refusal(end_of(stream))
        assert error.reason == "RATE_LIMITED"
        assert 5 < (error.retry_after_seconds or 0) < 16
        await other.write(node_pb2.SyncRequest(ack=requests[0]))
        await asyncio.sleep(0.2)
        assert not other.done()


async def opened(caller: Any) -> Any:
    """A push stream with its first update read."""
    stream = caller.node.Sync()
    await stream.write(node_pb2.SyncRequest(subscribe=node_pb2.Subscribe(agent_version="1")))
    if not isinstance(await stream.read(), node_pb2.SyncResponse):
        await stream.wait_for_connection()
    return stream


async def test_open_streams_of_one_address() -> None:
    async with limited(streams_per_address=1) as server:
        _, caller = await server.agent()
        stream = await opened(caller)
        await refusal(opened(caller))
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await opened(caller)


async def test_one_number_bounds_the_streams_of_an_agent_and_the_newest_are_served() -> None:
    """However many there were, and however often it comes again: what ends is its oldest."""
    async with limited(streams_per_agent=2) as server:
        _, caller = await server.agent()
        streams: list[Any] = []
        for _ in range(8):
            streams.append(await opened(caller))
            if len(streams) > 2:
                assert await streams[-3].code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "2 newer streams" in await streams[-3].details()
        assert not any(stream.done() for stream in streams[-2:])


async def test_streams_that_never_subscribe_are_bounded_too_and_leave_room_for_others() -> None:
    async with limited(streams_per_agent=2) as server:
        _, caller = await server.agent()
        _, neighbour = await server.agent()
        silent = [caller.node.Sync() for _ in range(8)]
        await eventually(lambda: sum(stream.done() for stream in silent) == 4)
        for stream in silent:
            if stream.done():
                assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await refusal(opened(caller))
        await opened(neighbour)


async def test_the_administrators_socket_is_exempt() -> None:
    async with limited(
        attestations_per_second_per_address=1, signatures_per_second_per_address=1, admission_running=1
    ) as server:
        for n in range(4):
            await server.mint(f"/minted/{n}")


async def test_a_crowd_of_newcomers_waits_in_order_or_is_told_when_to_come() -> None:
    """More than may run and wait: some are refused, and each gets in when it comes as it was told."""
    async with running_server(limits={"admission_running": 2, "admission_waiting": 3}) as server:
        tokens = [await server.token() for _ in range(24)]
        caller = await server.caller()
        refusals: list[BurgeeError] = []

        async def attested(token: str) -> str:
            while True:
                try:
                    return (await server.attest(token=token, caller=caller)).path
                except grpc.aio.AioRpcError as raised:
                    error = error_of(raised)
                    assert error.reason == "SERVER_BUSY"
                    assert error.retry_after_seconds is not None
                    refusals.append(error)
                    await asyncio.sleep(error.retry_after_seconds)

        paths = await asyncio.gather(*(attested(token) for token in tokens))
        assert sorted(paths) == sorted(f"/spire/agent/join_token/{token}" for token in tokens)
        assert refusals
        assert len({error.retry_after_seconds for error in refusals}) > 1


async def test_of_those_who_wait_the_soonest_to_expire_is_next_and_newcomers_are_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the order of what was put on record, whatever the order in which they came."""
    made_limits: list[Limits] = []

    def keep(*arguments: Any) -> Limits:
        made_limits.append(Limits(*arguments))
        return made_limits[-1]

    monkeypatch.setattr("ca.server.Limits", keep)
    async with running_server(limits={"admission_running": 1, "admission_waiting": 10}) as server:
        agents = []
        for seconds in (3000, 600, 1200):
            server.server.reconfigure(server.config.model_copy(update={"agent_ttl_seconds": seconds}))
            identity, caller = await server.agent()
            (made,) = await server.create(entry("/w", identity.path))
            request = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
            await caller.svids.NewJWTSVID(request)  # connected
            agents.append((seconds, identity.path, caller, request))
        newcomer, token = await server.caller(), await server.token()
        admission = made_limits[-1]._admission
        before = len(await _issued(server))
        calls: list[Any] = []
        async with admission.turn((0.0,)):
            calls.append(asyncio.ensure_future(server.attest(token=token, caller=newcomer)))
            await eventually(lambda: admission.waiting == 1)
            for number, (_, _, caller, request) in enumerate(agents):
                calls.append(asyncio.ensure_future(caller.svids.NewJWTSVID(request)))
                await eventually(lambda number=number: admission.waiting == 2 + number)  # type: ignore[misc]
        await asyncio.gather(*calls)
        order = (await _issued(server))[before:]
        soonest = [f"spiffe://example.org{path}" for _, path, *_ in sorted(agents)]
        assert order == [*soonest, f"spiffe://example.org/spire/agent/join_token/{token}"]


async def _issued(server: RunningServer) -> list[str]:
    """The agents of everything on record, from the first on."""
    pages = server.local.admin.ListIssued(admin_pb2.ListIssuedRequest(), timeout=10)
    return [record.agent_id for page in [page async for page in pages] for record in page.records][::-1]


async def test_one_connection_may_hold_so_many_calls_open() -> None:
    """What the server announces in its first HTTP/2 frame binds every client (RFC 9113 §5.1.2)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_alpn_protocols(["h2"])
    async with running_server() as server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.server.address, ssl=tls)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        head = await reader.readexactly(9)
        settings = await reader.readexactly(int.from_bytes(head[:3]))
        assert head[3] == 4  # SETTINGS
        pairs = [settings[at : at + 6] for at in range(0, len(settings), 6)]
        announced = {int.from_bytes(pair[:2]): int.from_bytes(pair[2:]) for pair in pairs}
        assert announced[3] == 128  # MAX_CONCURRENT_STREAMS
        writer.close()
