"""The whole agent, through its real sockets, against the real server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from ca.errors import FailedPrecondition
from ca.identity.bundle_pem import format_pem
from ca.proto.burgee import agent_pb2, agent_pb2_grpc
from ca.proto.spire import server_agent_pb2, server_entry_pb2, types_pb2
from ca.runtime.config import from_values
from sds.agent import Agent, main
from sds.condition import State
from sds.config import AgentConfig
from tests.sds.lab import eventually, refused, status_of
from tests.support.pair import free_port
from tests.support.server import RunningServer, running_server, spiffe_id
from tests.support.workload_client import WorkloadClient, messages

ME = f"uid:{os.getuid()}"


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server(bind_port=free_port()) as started:
        yield started


@pytest.fixture
def home():
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def values(home: Path, server: RunningServer, **changes: Any) -> dict[str, Any]:
    (home / "bundle.pem").write_text(format_pem(server.server.trust.own))
    return {
        "trust_domain": "example.org",
        "data_dir": str(home / "agent"),
        "servers": ["{}:{}".format(*server.server.address)],
        "workload_socket": str(home / "w" / "w.sock"),
        "admin_socket": {"path": str(home / "a" / "a.sock")},
        "trust": {"bundle_file": str(home / "bundle.pem")},
        "node_attestor": {"join_token": {"token_file": str(home / "token")}},
        "cache": {"directory": str(home / "cache")},
        "metrics_address": "127.0.0.1:0",
        "attest_interval_seconds": 0.2,
    } | changes


@asynccontextmanager
async def started(config: AgentConfig) -> AsyncIterator[Agent]:
    agent = Agent(config)
    try:
        await agent.start()
        yield agent
    finally:
        await agent.close()


@pytest.fixture
async def agent(home: Path, server: RunningServer) -> AsyncIterator[Agent]:
    (home / "token").write_text(await server.token())
    async with started(from_values(values(home, server), AgentConfig)) as running:
        await eventually(lambda: running.cache.ready)
        yield running


@pytest.fixture
async def client(agent: Agent) -> AsyncIterator[WorkloadClient]:
    async with WorkloadClient(str(agent.config.workload_socket)) as client:
        yield client


async def create(agent: Agent, server: RunningServer, path: str, selector: str = ME, **fields: Any) -> str:
    assert agent.identity.svid is not None
    wanted = types_pb2.Entry(
        spiffe_id=spiffe_id(path),
        parent_id=spiffe_id(agent.identity.svid.id.path),
        selectors=[types_pb2.Selector(type="unix", value=selector)],
        **fields,
    )
    answer = await server.local.entries.BatchCreateEntry(server_entry_pb2.BatchCreateEntryRequest(entries=[wanted]))
    return str(answer.results[0].entry.id)


async def delete(server: RunningServer, entry_id: str) -> None:
    await server.local.entries.BatchDeleteEntry(server_entry_pb2.BatchDeleteEntryRequest(ids=[entry_id]))


async def held(agent: Agent, *entry_ids: str) -> None:
    await eventually(lambda: all(agent.cache.svid(entry_id) for entry_id in entry_ids))


@asynccontextmanager
async def workload(agent: Agent, rpc: str, uid: int = os.getuid()) -> AsyncIterator[asyncio.subprocess.Process]:
    script = Path(__file__).with_name("workload_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        str(agent.config.workload_socket),
        rpc,
        str(uid),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()


async def test_from_an_entry_to_an_svid_on_an_open_stream_and_back(
    agent: Agent, server: RunningServer, client: WorkloadClient
):  # E17, E19, E21
    assert await status_of(client.x509_svids()) == ("PERMISSION_DENIED", "no identity issued")
    first = await create(agent, server, "/one")
    await held(agent, first)
    stream = client.x509_svids()
    assert [s.spiffe_id for s in (await stream.read()).svids] == ["spiffe://example.org/one"]
    second = await create(agent, server, "/two", hint="h")
    message = await asyncio.wait_for(stream.read(), 5)
    assert {(s.spiffe_id, s.hint) for s in message.svids} == {
        ("spiffe://example.org/one", ""),
        ("spiffe://example.org/two", "h"),
    }
    await delete(server, second)
    assert [s.spiffe_id for s in (await stream.read()).svids] == ["spiffe://example.org/one"]
    token = (await client.jwt_svids("aud")).svids[0].svid
    assert (await client.validate("aud", token)).spiffe_id == "spiffe://example.org/one"
    await delete(server, first)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in messages(stream):
            pass
    assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root: run the tests as root")
async def test_another_user_is_denied(agent: Agent, server: RunningServer):  # E18, E21
    await held(agent, await create(agent, server, "/mine"))
    async with workload(agent, "x509") as mine:
        assert await line(mine) == "spiffe://example.org/mine"
    async with workload(agent, "x509", 65534) as other:
        assert await line(other) == "PERMISSION_DENIED no identity issued"
    await held(agent, await create(agent, server, "/theirs", "uid:65534"))
    async with workload(agent, "x509", 65534) as other:
        assert await line(other) == "spiffe://example.org/theirs"


async def test_a_caller_that_exits_leaves_nothing_behind(agent: Agent, server: RunningServer):
    await held(agent, await create(agent, server, "/w"))
    async with workload(agent, "x509") as process:
        assert await line(process) == "spiffe://example.org/w"
        assert agent.cache.streams() == 1
        process.kill()
        await eventually(lambda: agent.cache.streams() == 0)
        await eventually(lambda: len(agent.workloads) == 0)


async def test_what_the_admin_socket_tells(agent: Agent, server: RunningServer, client: WorkloadClient):
    await held(agent, await create(agent, server, "/w"))
    call = client.sds()
    await call.ask("default", "ROOTCA", "nope")
    await call.read()
    await call.ack("default", "ROOTCA", "nope")
    async with grpc.aio.insecure_channel(f"unix:{agent.config.admin_socket_path}") as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        status = await stub.GetStatus(agent_pb2.GetStatusRequest())
        assert agent.identity.svid is not None
        assert (status.state, status.spiffe_id) == ("OK", str(agent.identity.svid.id))
        assert (status.entries, status.x509_svids, status.sds_streams, status.workload_streams) == (1, 1, 1, 0)
        assert status.server_address == "{}:{}".format(*server.server.address)
        assert status.store_epoch
        assert status.revision
        assert status.first_workload_expiry > status.started_at
        clients = (await stub.ListSdsClients(agent_pb2.ListSdsClientsRequest())).clients
        assert (clients[0].pid, clients[0].uid) == (os.getpid(), os.getuid())
        states = {resource.name: resource.state for resource in clients[0].resources}
        assert states == {"default": "ACKED", "ROOTCA": "ACKED", "nope": "UNKNOWN"}
        # Neither socket serves the other's services.
        assert (await refused(channel.unary_unary("/grpc.health.v1.Health/Check")(b"")))[0] == "UNIMPLEMENTED"
    hidden = client.channel.unary_unary("/burgee.agent.v1.Agent/GetStatus")
    assert (await refused(hidden(b"")))[0] == "UNIMPLEMENTED"


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root: run the tests as root")
async def test_the_admin_socket_is_for_administrators(agent: Agent):
    mode = agent.config.admin_socket_path.stat().st_mode & 0o777
    assert mode == 0o600
    assert agent.config.admin_socket_path.parent.stat().st_mode & 0o777 == 0o700
    assert agent.config.workload_socket.stat().st_mode & 0o777 == 0o777


async def test_health_on_the_workload_socket(agent: Agent, client: WorkloadClient):
    check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert await check(b"") == b"\x08\x01"
    named = b"\x0a\x11SpiffeWorkloadAPI"
    assert await refused(check(named)) == ("INVALID_ARGUMENT", "per-service health is not supported")
    assert (await refused(check(b"\xff")))[0] == "INVALID_ARGUMENT"
    watch = client.channel.unary_stream("/grpc.health.v1.Health/Watch")
    assert (await status_of(watch(b"")))[0] == "UNIMPLEMENTED"


async def test_metrics_and_readiness(agent: Agent, server: RunningServer, client: WorkloadClient):
    await held(agent, await create(agent, server, "/w"))
    await client.x509_svids().read()
    status, body = await http(agent, "/ready")
    assert (status, body["status"]) == (200, "ok")
    _, text = await http(agent, "/metrics")
    assert "burgee_agent_x509_svids 1.0" in text
    assert 'burgee_agent_state{state="OK"} 1.0' in text
    assert "burgee_agent_svid_not_after_seconds" in text


async def test_an_agent_restarted_without_a_server_serves_what_is_sealed(
    home: Path, server: RunningServer, agent: Agent, client: WorkloadClient
):
    await held(agent, await create(agent, server, "/w"))
    before = (await client.x509_svids().read()).svids[0]
    await agent.close()
    await server.stop()
    try:
        async with started(agent.config) as again, WorkloadClient(str(agent.config.workload_socket)) as caller:
            message = await asyncio.wait_for(caller.x509_svids().read(), 2)
            assert message.svids[0].x509_svid == before.x509_svid
            assert message.svids[0].x509_svid_key == before.x509_svid_key
            call = caller.sds()
            await call.ask("default")
            assert len((await call.read()).resources) == 1
            assert (await caller.x509_bundles().read()).bundles
            assert (await http(again, "/ready"))[0] == 200  # workloads get their SVIDs
            await eventually(lambda: again.condition.state is State.DEGRADED, seconds=15)
            problem = again.condition.problem
            assert problem is not None
            assert problem.reason == "SERVER_UNREACHABLE"
    finally:
        await server.start()


async def test_a_ban_ends_everything_and_erases_the_cache(
    home: Path, server: RunningServer, agent: Agent, client: WorkloadClient
):
    await held(agent, await create(agent, server, "/w"))
    await agent.keeper.save()
    stream = client.x509_svids()
    await stream.read()
    assert agent.identity.svid is not None
    banned = spiffe_id(agent.identity.svid.id.path)
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=banned))
    assert await status_of(stream) == ("PERMISSION_DENIED", "the server banned this agent")
    assert (await status_of(client.x509_svids()))[0] == "PERMISSION_DENIED"
    assert agent.condition.state is State.BANNED
    status, body = await http(agent, "/ready")
    assert status == 503
    assert body["problems"][0]["reason"] == "AGENT_BANNED"
    assert (await http(agent, "/live"))[0] == 200
    await agent.keeper.save()
    assert [path for path in (home / "cache").rglob("*") if path.is_file() and path.suffix == ".sealed"] == []


async def test_after_a_ban_a_new_token_makes_it_a_new_agent(
    home: Path, server: RunningServer, agent: Agent, client: WorkloadClient
):
    """No restart: it begins with nothing, and what is served then is the new agent's alone."""
    await held(agent, await create(agent, server, "/before"))
    await agent.keeper.save()
    assert agent.identity.svid is not None
    before = agent.identity.svid.id
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=spiffe_id(before.path)))
    await eventually(lambda: agent.condition.state is State.BANNED and not agent.cache.ready)
    async with grpc.aio.insecure_channel(f"unix:{agent.config.admin_socket_path}") as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        status = await stub.GetStatus(agent_pb2.GetStatusRequest())
        assert (status.state, status.reason, status.entries, status.x509_svids) == ("BANNED", "AGENT_BANNED", 0, 0)
        (home / "token").write_text(await server.token())
        await eventually(lambda: agent.condition.state is State.OK, seconds=20)
        assert (await stub.GetStatus(agent_pb2.GetStatusRequest())).entries == 0
    assert agent.identity.svid.id != before
    assert await status_of(client.x509_svids()) == ("PERMISSION_DENIED", "no identity issued")
    await held(agent, await create(agent, server, "/after"))
    message = await client.x509_svids().read()
    assert [svid.spiffe_id for svid in message.svids] == ["spiffe://example.org/after"]
    assert (await http(agent, "/ready"))[0] == 200
    config = agent.config
    await agent.close()
    async with started(config) as again:
        assert [entry.spiffe_id.path for entry in again.cache.entries()] == ["/after"], "and that is what it remembers"


async def test_two_agents_do_not_share_a_data_directory(agent: Agent):
    with pytest.raises(FailedPrecondition) as refused_:
        Agent(agent.config)
    assert refused_.value.reason == "AGENT_RUNNING"


async def test_an_agent_that_its_server_refuses_tells_workloads_that_it_has_no_identity_and_the_code(
    home: Path, server: RunningServer
):
    (home / "token").write_text("not-a-token-9c1")
    config = from_values(values(home, server), AgentConfig)
    async with started(config) as agent, WorkloadClient(str(config.workload_socket)) as client:
        await eventually(lambda: agent.condition.no_identity is not None)
        call = client.x509_svids()
        assert await status_of(call) == ("UNAVAILABLE", "the agent has no identity (ATTESTATION_REFUSED)")
        details = dict(await call.trailing_metadata())["grpc-status-details-bin"]
        assert b"AGENT_NOT_READY" in details
        _, body = await http(agent, "/ready")
        (problem,) = body["problems"]
        assert problem["reason"] == "ATTESTATION_REFUSED"
        assert problem["detail"].startswith("this agent has no identity: the server refused this node's attestation")
        assert b"not-a-token-9c1" not in details


async def test_a_starting_agent_says_so(home: Path, server: RunningServer):  # E26
    (home / "token").write_text("not-a-token")
    config = from_values(values(home, server), AgentConfig)
    async with started(config) as agent, WorkloadClient(str(config.workload_socket)) as client:
        assert (await status_of(client.x509_svids()))[0] == "UNAVAILABLE"
        status, body = await http(agent, "/ready")
        assert status == 503
        assert body["problems"]
        assert await client.channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x02"


def test_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]):
    good = {
        "trust_domain": "example.org",
        "data_dir": str(home / "agent"),
        "servers": ["127.0.0.1:1"],
        "trust": {"insecure_bootstrap": True},
        "node_attestor": {"join_token": {"token": "t"}},
    }
    file = home / "agent.yaml"
    file.write_text(yaml.safe_dump(good))
    assert main(["--config", str(file), "--check"]) == 0
    file.write_text(yaml.safe_dump(good | {"trust_domian": "x"}))
    assert main(["--config", str(file), "--check"]) == 2
    assert "trust_domain" in capsys.readouterr().err
    file.write_text(yaml.safe_dump(good | {"workload_attestors": {"unix": {"nope": 1}}}))
    assert main(["--config", str(file), "--check"]) == 2
    assert main(["--config", str(home / "missing.yaml")]) == 2


async def test_the_process_stops_cleanly(home: Path, server: RunningServer):
    (home / "token").write_text(await server.token())
    (home / "agent.yaml").write_text(yaml.safe_dump(values(home, server, metrics_address=None)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sds.agent", "--config", str(home / "agent.yaml"), cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        await eventually(lambda: accepts(home / "w" / "w.sock"), seconds=20)
        async with WorkloadClient(str(home / "w" / "w.sock")) as client:
            call = client.sds()
            await call.ask("ROOTCA")
            await asyncio.wait_for(call.read(), 20)
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0, errors.decode()
        assert b"Traceback" not in errors
        assert not list((home / "agent" / "private").iterdir())
    finally:
        if process.returncode is None:
            process.kill()


def accepts(path: Path) -> bool:
    """Whether somebody listens there: the file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def http(agent: Agent, path: str) -> tuple[int, Any]:
    """(status, JSON or text) of the status server."""
    assert agent._status is not None
    reader, writer = await asyncio.open_connection(agent._status.host, agent._status.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body if path == "/metrics" else json.loads(body)
