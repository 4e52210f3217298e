"""A server in trouble while it runs: what it answers, what it says of itself, and that it comes back by itself."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import httpx
import pytest

from ca.errors import Unavailable
from ca.proto.spire import server_bundle_pb2, server_svid_pb2
from ca.runtime.clock import SystemClock
from ca.runtime.heartbeat import STUCK_SECONDS, Heartbeat
from tests.ca.api.refusals import refused
from tests.support.clock import FakeClock
from tests.support.server import RunningServer, data_dir_of, entry, eventually, make_csr, running_server


class Settable(SystemClock):
    """The real time, and how far somebody has set the wall clock away from it."""

    def __init__(self) -> None:
        super().__init__()
        self.off = timedelta()

    def now(self) -> datetime:
        return super().now() + self.off


async def asked(server: RunningServer, path: str) -> tuple[int, list[str]]:
    """Status and reasons of /live or /ready."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://{server.server.metrics_address}/{path}")
    return answer.status_code, [problem["reason"] for problem in answer.json()["problems"]]


def detail_of(server: RunningServer, check: str) -> str:
    """What a check of readiness says; empty when all is well."""
    found = server.server.health.problems().get(check)
    return found.detail if found else ""


async def refusals(server: RunningServer, reason: str) -> float:
    """Calls that were refused for it, as /metrics counts them."""
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"http://{server.server.metrics_address}/metrics")).text.splitlines()
    counted = (line for line in lines if line.startswith("burgee_rpc_refused_total") and f'"{reason}"' in line)
    return sum(float(line.rpartition(" ")[2]) for line in counted)


def exclusive(server: RunningServer) -> sqlite3.Connection:
    """As `sqlite3 store.sqlite3 .backup` of an old version, or VACUUM, holds it."""
    lock = sqlite3.connect(data_dir_of(server) / "store.sqlite3", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")
    return lock


class TestLockedStore:
    async def test_for_a_moment_calls_wait(self) -> None:
        async with running_server() as server:
            lock = exclusive(server)
            threading.Timer(0.5, lock.rollback).start()
            await server.mint("/w")
            lock.close()

    async def test_for_long_nothing_is_issued_and_it_is_said(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("ca.store.database.BUSY_TIMEOUT_MS", 100)
        monkeypatch.setattr("ca.service.store_watch.EVERY_SECONDS", 0.1)
        async with running_server(metrics_address="127.0.0.1:0") as server:
            identity, caller = await server.agent()
            (made,) = await server.create(entry("/w", identity.path))
            request = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
            await caller.svids.NewJWTSVID(request)
            before = [await refusals(server, reason) for reason in ("STORE_UNAVAILABLE", "AUDIT_UNAVAILABLE")]
            lock = exclusive(server)
            with refused(grpc.StatusCode.UNAVAILABLE, reason="STORE_UNAVAILABLE"):
                await caller.svids.NewJWTSVID(request)
            with refused(grpc.StatusCode.UNAVAILABLE, reason="AUDIT_UNAVAILABLE"):
                await server.mint("/w")
            assert await asked(server, "ready") == (503, ["STORE_UNAVAILABLE"])
            assert await asked(server, "live") == (200, [])
            assert (await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())).x509_authorities
            await asyncio.sleep(0.3)
            assert (await asked(server, "ready"))[0] == 503, "nobody has written meanwhile"
            after = [await refusals(server, reason) for reason in ("STORE_UNAVAILABLE", "AUDIT_UNAVAILABLE")]
            assert after == [count + 1 for count in before]
            assert "store cannot be reached" in "".join(capsys.readouterr())
            lock.rollback()
            lock.close()
            await eventually(lambda: server.server.health.ready)
            await caller.svids.NewJWTSVID(request)


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_store_that_was_removed_is_not_written_to(replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite would go on in a file without a name, and every record be lost with the process."""
    monkeypatch.setattr("ca.service.store_watch.EVERY_SECONDS", 0.1)
    async with running_server(metrics_address="127.0.0.1:0") as server:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))
        request = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
        await caller.svids.NewJWTSVID(request)
        file = data_dir_of(server) / "store.sqlite3"
        aside = file.with_suffix(".aside")
        file.rename(aside)
        if replaced:
            shutil.copy(aside, file)
        await eventually(lambda: bool(detail_of(server, "store")))
        assert await asked(server, "ready") == (503, ["STORE_LOST"])
        assert await asked(server, "live") == (200, [])
        with refused(grpc.StatusCode.UNAVAILABLE, reason="STORE_LOST"):
            await caller.svids.NewJWTSVID(request)
        with refused(grpc.StatusCode.UNAVAILABLE, reason="AUDIT_UNAVAILABLE"):
            await server.mint("/w")
        aside.replace(file)
        await eventually(lambda: not detail_of(server, "store"))
        assert (await caller.svids.NewJWTSVID(request)).svid.token
        assert (await asked(server, "ready"))[0] == 200


class TestClock:
    async def test_behind_the_authorities_beginning_nothing_is_signed(self, capsys: pytest.CaptureFixture[str]) -> None:
        clock = Settable()
        async with running_server(clock=clock, metrics_address="127.0.0.1:0") as server:
            await server.mint("/w")
            before = await refusals(server, "CLOCK_BEHIND")
            clock.off = timedelta(hours=-1)
            told = clock.now().isoformat(timespec="minutes")[:16]
            begins = server.server.authority.authorities[0].not_before.isoformat()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await server.mint("/w")
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert told in (raised.value.details() or "")
            assert begins in (raised.value.details() or "")
            status, reasons = await asked(server, "ready")
            assert status == 503
            assert "CLOCK_BEHIND" in reasons
            assert await refusals(server, "CLOCK_BEHIND") == before + 1
            assert "reason=CLOCK_BEHIND" in "".join(capsys.readouterr())
            assert await asked(server, "live") == (200, [])
            clock.off = timedelta()
            await server.mint("/w")
            assert await asked(server, "ready") == (200, [])

    async def test_ahead_agents_have_expired_and_can_attest_anew(self, capsys: pytest.CaptureFixture[str]) -> None:
        """An hour ahead: to this server its agents are late. Back again, what it issued meanwhile begins later."""
        clock = Settable()
        async with running_server(clock=clock, metrics_address="127.0.0.1:0") as server:
            identity, caller = await server.agent()
            (made,) = await server.create(entry("/w", identity.path))
            request = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
            await caller.svids.NewJWTSVID(request)
            before = await refusals(server, "AGENT_EXPIRED")
            clock.off = timedelta(hours=1, seconds=1)
            with refused(grpc.StatusCode.PERMISSION_DENIED, reason="AGENT_EXPIRED"):
                await caller.svids.NewJWTSVID(request)
            log = "".join(capsys.readouterr())
            assert f"expired at {identity.leaf.not_valid_after_utc.isoformat()}" in log
            assert f"the clock here says {clock.now().isoformat()[:13]}" in log
            assert await refusals(server, "AGENT_EXPIRED") == before + 1
            assert await asked(server, "live") == (200, [])
            later = await server.attest()
            assert later.leaf.not_valid_before_utc > datetime.now(UTC) + timedelta(minutes=59)
            clock.off = timedelta()
            await caller.svids.NewJWTSVID(request)
            early = await server.caller(later)
            with pytest.raises(grpc.aio.AioRpcError):
                await early.svids.NewJWTSVID(request, timeout=2)

    async def test_beyond_its_own_svids_end_the_server_is_not_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody can verify it then; a new one may not be had."""
        clock = Settable()
        async with running_server(clock=clock, metrics_address="127.0.0.1:0") as server:

            async def refuses(*_: object) -> None:
                raise Unavailable("the signer is away")

            with monkeypatch.context() as away:
                away.setattr(server.server.issuer, "for_server", refuses)
                clock.off = timedelta(hours=2)
                await eventually(lambda: "the signer is away" in detail_of(server, "server_svid"), seconds=20)
                assert await asked(server, "ready") == (503, ["SERVER_SVID_EXPIRED"])
                assert (await asked(server, "live"))[0] == 200
                said = detail_of(server, "server_svid")
                assert re.search(r"expired at 20\d\d-", said)
                assert f"the clock here says {clock.now().isoformat()[:13]}" in said
            await eventually(lambda: not detail_of(server, "server_svid"), seconds=20)

    async def test_what_was_set_is_logged_with_both_times(self, capsys: pytest.CaptureFixture[str]) -> None:
        clock = FakeClock()
        with ThreadPoolExecutor(1) as pool:
            heart = Heartbeat(clock=clock, pool=pool)
            task = asyncio.create_task(heart.run())
            await eventually(lambda: bool(clock._sleepers))
            clock.jump(-3600)
            await clock.advance(1)
            await eventually(lambda: "CLOCK_SET" in "".join(capsys.readouterr()))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class TestLive:
    async def test_worker_threads_that_are_stuck(self) -> None:
        clock, door = FakeClock(), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            heart = Heartbeat(clock=clock, pool=pool)
            pool.submit(door.wait)
            task = asyncio.create_task(heart.run())
            await clock.advance(STUCK_SECONDS)
            assert heart.check() is None
            await clock.advance(1)
            problem = heart.check()
            assert problem is not None
            assert problem.reason == "STUCK"
            door.set()
            await eventually(lambda: heart.check() is None)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def test_an_essential_task_that_is_over(self) -> None:
        async with running_server(metrics_address="127.0.0.1:0") as server:
            assert await asked(server, "live") == (200, [])
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "authority")
            task.cancel()
            await eventually(task.done)
            assert await asked(server, "live") == (503, ["TASK_OVER"])
            assert (await asked(server, "ready"))[0] == 503


async def test_a_lost_answer_to_an_attestation_can_be_had_again_with_the_same_key() -> None:
    async with running_server() as server:
        token, (first, other) = await server.token(), (_key(), _key())
        before = await server.attest(token=token, csr=make_csr(first))
        again = await server.attest(token=token, csr=make_csr(first))
        assert again.path == before.path
        assert again.leaf.serial_number != before.leaf.serial_number
        with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="JOIN_TOKEN_UNKNOWN"):
            await server.attest(token=token, csr=make_csr(other))
        assert len(server.server.agents.agents) == 1


def _key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())
