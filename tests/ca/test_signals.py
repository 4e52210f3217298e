"""The programs and signals: a stop lets calls finish, SIGHUP takes over what may change, systemd is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from ca.proto.burgee import admin_pb2, debug_pb2, debug_pb2_grpc
from ca.proto.spire import server_agent_pb2
from ca.runtime.rpc import connect
from tests.ca.test_server import Program, directory, program, write_config
from tests.support.pair import Pair, pair, until
from tests.support.server import Caller, eventually, running_server, spiffe_id

__all__ = ["directory"]


@contextmanager
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with (
        tempfile.TemporaryDirectory(prefix="bg-") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(f"{place}/n")
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{place}/n")
        yield receiver


async def next_line(running: Program, *events: str) -> dict[str, Any]:
    """The next line of the log with one of these events."""
    assert running.process.stderr is not None
    async with asyncio.timeout(20):
        while text := await running.process.stderr.readline():
            line: dict[str, Any] = json.loads(text)
            if line["event"] in events:
                return line
    raise AssertionError("the server ended")


async def config_of(running: Program) -> dict[str, Any]:
    channel = connect(running.ready["admin_socket"])
    report = await debug_pb2_grpc.DebugStub(channel).GetReport(debug_pb2.GetReportRequest())
    await channel.close()
    values: dict[str, Any] = yaml.safe_load(report.config_yaml)
    return values


async def read_to_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


class TestServer:
    async def test_sighup_applies_what_may_change(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with systemd(monkeypatch) as told:
            config = write_config(directory)
            async with program(config) as running:
                assert told.recv(100) == b"READY=1"
                write_config(directory, x509_svid_ttl_seconds=600, bind_address="127.0.0.2", log={"format": "json"})
                running.process.send_signal(signal.SIGHUP)
                line = await next_line(running, "configuration reloaded")
                assert line["applied"] == ["x509_svid_ttl_seconds"]
                waiting = await next_line(running, "these keys changed and need a restart")
                assert (waiting["reason"], waiting["keys"]) == ("RESTART_NEEDED", ["bind_address"])
                assert told.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert told.recv(100) == b"READY=1"
                now = await config_of(running)
                assert (now["x509_svid_ttl_seconds"], now["bind_address"]) == (600, "127.0.0.1")
                config.write_text("trust_domian: x\n")
                running.process.send_signal(signal.SIGHUP)
                line = await next_line(running, "configuration not reloaded; the old one stays in force")
                assert (line["level"], line["reason"]) == ("error", "RELOAD_FAILED")
                assert "trust_domian" in line["detail"]
                assert (await config_of(running))["x509_svid_ttl_seconds"] == 600
                assert await running.stop() == 0
                assert [told.recv(100) for _ in range(3)][-1] == b"STOPPING=1"

    async def test_what_a_reload_reaches(self) -> None:
        async with running_server() as server:
            changed = {
                "jwt_svid_ttl_seconds": 60,
                "admin_ids": ("spiffe://example.org/boss",),
                "stop_grace_seconds": 1.0,
            }
            server.server.reconfigure(
                server.config.model_copy(
                    update={
                        **changed,
                        "prune": server.config.prune.model_copy(
                            update={"audit_retention_seconds": 5, "every_seconds": 60}
                        ),
                        "audit": server.config.audit.model_copy(update={"reads": True}),
                        "admin_socket": server.config.admin_socket.model_copy(update={"admin_uids": (4242,)}),
                    }
                )
            )
            answer = await server.local.admin.MintJWTSVID(
                admin_pb2.MintJWTSVIDRequest(id=spiffe_id("/w"), audience=["a"])
            )
            assert answer.lifetime.granted_seconds == 60
            boss = await server.caller(await server.mint("/boss"))
            assert (await boss.agents.CountAgents(server_agent_pb2.CountAgentsRequest())).count == 0
            assert server.server.pruner.policy.audit_retention.total_seconds() == 5
            assert server.server.auditor.reads
            admits = server.server._admits()
            from ca.runtime.gate import PeerCred

            assert admits(PeerCred(pid=1, uid=4242, gid=0))
            assert not admits(PeerCred(pid=1, uid=4243, gid=0))

    async def test_who_is_an_administrator_no_more_is_cut_off_by_a_reload(self) -> None:
        async with running_server(admin_ids=["spiffe://example.org/boss", "spiffe://example.org/other"]) as server:
            boss, other = [await server.caller(await server.mint(path)) for path in ("/boss", "/other")]
            follow = admin_pb2.ListAuditRequest(follow=True)
            streams = [boss.admin.ListAudit(follow), other.admin.ListAudit(follow)]
            for stream in streams:
                await stream.read()
            server.server.reconfigure(server.config.model_copy(update={"admin_ids": ("spiffe://example.org/other",)}))
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(read_to_end(streams[0]), 5)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await boss.agents.CountAgents(server_agent_pb2.CountAgentsRequest(), wait_for_ready=True, timeout=10)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert (await other.agents.CountAgents(server_agent_pb2.CountAgentsRequest())).count == 0
            assert not streams[1].done()

    async def test_a_call_under_way_finishes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with running_server() as server:
            identity = await server.attest()
            started, go_on = asyncio.Event(), asyncio.Event()
            ban = server.server.store.agents.ban

            async def slow(agent_id: Any) -> Any:
                started.set()
                await go_on.wait()
                return await ban(agent_id)

            monkeypatch.setattr(server.server.store.agents, "ban", slow)
            request = server_agent_pb2.BanAgentRequest(id=spiffe_id(identity.path))
            call = asyncio.ensure_future(server.local.agents.BanAgent(request, timeout=20))
            await asyncio.wait_for(started.wait(), 10)
            stopping = asyncio.create_task(server.server.stop())

            async def refuses() -> bool:
                other = Caller(connect(server.config.admin_socket_path))
                try:
                    await other.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=1)
                except grpc.aio.AioRpcError:
                    return True
                finally:
                    await other.channel.close()
                return False

            await eventually(refuses)
            go_on.set()
            await call
            await asyncio.wait_for(stopping, 10)


class TestAgent:
    def test_sighup_and_a_stop(self) -> None:
        with pair() as running:
            config = running.home / "agent.yaml"
            values = yaml.safe_load(config.read_text())
            values |= {"log": {"level": "debug"}, "attest_interval_seconds": 7.0}
            config.write_text(yaml.safe_dump(values))
            os.kill(running.pid("agent"), signal.SIGHUP)
            log = running.home / "agent.log"
            until("the new level", lambda: "configuration reloaded" in log.read_text())
            until("a warning", lambda: "RESTART_NEEDED" in log.read_text())
            assert "attest_interval_seconds" in log.read_text()
            assert _config(running)["log"]["level"] == "debug"
            config.write_text("nonsense: true\n")
            os.kill(running.pid("agent"), signal.SIGHUP)
            until("the error", lambda: "RELOAD_FAILED" in log.read_text())
            assert running.status().state == "OK"
            assert running.stop("agent") == 0


def _config(running: Pair) -> dict[str, Any]:
    with grpc.insecure_channel(f"unix:{running.agent_admin_socket}") as channel:
        report = debug_pb2_grpc.DebugStub(channel).GetReport(debug_pb2.GetReportRequest(), timeout=5)
    values: dict[str, Any] = yaml.safe_load(report.config_yaml)
    assert report.program == "agent"
    return values
