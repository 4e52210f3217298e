"""Whom the gate bears how many of, and what callers without a certificate may do."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from typing import Any

import grpc
import pytest

from ca.runtime import peers
from ca.runtime.gate import GateLimits
from ca.runtime.gate_places import RESERVED_PLACES, Places, origin_of_address
from tests.ca.runtime.rig import call, rig, until

STREAM = "/test.Probe/Echo"
WEB = "spiffe://example.org/web"


async def read_to_the_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_a_stranger_cannot_fill_our_memory_with_halves_of_requests() -> None:
    """One connection, many streams, each with most of a message: grpcio keeps all of that."""
    async with rig(tcp=True) as it, it.tls_client() as client:
        calls = [client.channel.stream_stream(STREAM)() for _ in range(8)]
        writes = [asyncio.ensure_future(c.write(os.urandom(256 << 10))) for c in calls]
        await until(lambda: it.refused("ANONYMOUS_TOO_MUCH"))
        await asyncio.gather(*writes, return_exceptions=True)
        for one in calls:
            one.cancel()


async def test_a_caller_with_a_certificate_may_send_more() -> None:
    limits = GateLimits(max_anonymous_bytes=10_000)
    async with rig(tcp=True, limits=limits) as it, it.tls_client(it.pki.leaf(WEB)) as client:
        assert await call(client.channel, "Size", bytes(100_000)) == b"100000"


async def test_a_stranger_is_asked_to_leave_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream goes on until the end of the connection; a caller with a certificate stays."""
    monkeypatch.setattr("ca.runtime.gate.SWEEP_SECONDS", 0.05)
    monkeypatch.setattr("ca.runtime.gate_connection.GOAWAY_DRAIN_SECONDS", 0.4)
    limits = GateLimits(max_anonymous_seconds=0.2)
    async with rig(tcp=True, limits=limits) as it, it.tls_client(it.pki.leaf(WEB)) as known:
        await call(known.channel, "Who")
        async with it.tls_client() as stranger:
            stream = stranger.channel.stream_stream(STREAM)()
            await stream.write(b"a")
            assert await stream.read() == b"a"
            began = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError):
                await read_to_the_end(stream)
        assert time.monotonic() - began > 0.3, "GOAWAY leaves time"
        assert it.refused("ANONYMOUS_TOO_LONG")
        await call(known.channel, "Who")
        assert known.connections == 1


async def test_strangers_do_not_crowd_out_those_with_a_certificate() -> None:
    async with rig(tcp=True, limits=GateLimits(max_anonymous_connections=1)) as it:
        async with it.tls_client() as first, it.tls_client() as second:
            await call(first.channel, "Who")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(second.channel, "Who")
            assert it.refused("ANONYMOUS_LIMIT")
            async with it.tls_client(it.pki.leaf(WEB)) as known:
                await call(known.channel, "Who")
        await until(lambda: not it.gate.connections())
        async with it.tls_client() as third:
            await call(third.channel, "Who")


async def test_one_connection_that_cannot_be_asked_to_leave_does_not_keep_the_others_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ca.runtime.gate.SWEEP_SECONDS", 0.02)

    def broken(self: Any) -> None:
        raise OSError("no way to write")

    monkeypatch.setattr("ca.runtime.gate_insertions.Insertions.go_away", broken)
    async with rig(tcp=True, limits=GateLimits(max_anonymous_seconds=0.0)) as it:
        for count in (1, 2):
            async with it.tls_client() as stranger:
                stream = stranger.channel.unary_stream("/test.Probe/Watch")(b"")
                with pytest.raises(grpc.aio.AioRpcError):
                    await read_to_the_end(stream)
            assert it.refused("ANONYMOUS_TOO_LONG") >= count


def test_the_last_places_are_for_root_and_ourselves() -> None:
    places = Places(GateLimits(max_connections=1000), 1 << 20)
    for _ in range(1000 - RESERVED_PLACES):
        places.take("somebody")
    assert places.refusal_of_address("192.0.2.1") == "CONNECTION_LIMIT"
    assert places.refusal_of_uid(54321) == "CONNECTION_LIMIT"
    assert places.refusal_of_uid(0) == ""
    assert places.refusal_of_uid(os.geteuid()) == ""
    for _ in range(RESERVED_PLACES):
        places.take("ourselves")
    assert places.refusal_of_uid(0) == "CONNECTION_LIMIT"


@pytest.mark.parametrize(("most", "allowed"), [(10_000, 1_500), (1_000, 500)])
def test_one_workload_has_its_share_and_never_more_than_half(most: int, allowed: int) -> None:
    places = Places(GateLimits(max_connections=most), 1 << 20)
    for _ in range(allowed):
        assert places.refusal_of_share("cgroup:/a") == ""
        places.take(("uid", 7), "cgroup:/a")
    assert places.refusal_of_share("cgroup:/a") == "CONNECTION_LIMIT_OF_CALLER"
    assert places.refusal_of_share("cgroup:/b") == ""
    assert places.refusal_of_uid(7) == "", "its user is not at a limit"
    places.give_back(("uid", 7), "cgroup:/a")
    assert places.refusal_of_share("cgroup:/a") == ""


def test_an_ipv6_site_is_one_origin_and_ipv4_in_ipv6_is_ipv4() -> None:
    assert origin_of_address("2001:db8::1") == origin_of_address("2001:db8::ffff:2") != origin_of_address("2001:db9::1")
    assert origin_of_address("::ffff:192.0.2.1") == origin_of_address("192.0.2.1") != origin_of_address("192.0.2.2")
    assert origin_of_address("fe80::1%eth0") == origin_of_address("fe80::2%eth0")


class _Socket:
    """A socket of a kernel that answers SO_PEERPIDFD with an error."""

    def __init__(self, number: int) -> None:
        self._number = number

    def getsockopt(self, level: int, option: int, *size: int) -> bytes:
        if option == socket.SO_PEERCRED:
            return struct.pack("iII", os.getpid(), os.getuid(), os.getgid())
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODATA])
def test_who_uses_up_our_descriptors_does_not_get_a_weaker_pin(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        peers.read_peer_cred(_Socket(number))  # type: ignore[arg-type]  # as much of a socket as is asked for

    def exhausted(pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", exhausted)
    with pytest.raises(OSError, match=os.strerror(number)):
        peers.read_peer_cred(_Socket(errno.ENOPROTOOPT))  # type: ignore[arg-type]


def test_a_kernel_without_pidfds_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", unknown)
    assert peers.read_peer_cred(_Socket(errno.ENOPROTOOPT)).pidfd is None  # type: ignore[arg-type]
