"""The services that SPIRE's tools find on the agent's admin socket: debug and logger."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from ca.identity.bundle import TrustBundle
from ca.proto.spire import (
    agent_debug_pb2,
    agent_debug_pb2_grpc,
    agent_delegatedidentity_pb2,
    agent_delegatedidentity_pb2_grpc,
    agent_logger_pb2,
    agent_logger_pb2_grpc,
    types_pb2,
)
from ca.runtime.config import from_values
from ca.runtime.log import configure, get
from ca.runtime.log_levels import LogLevels
from ca.runtime.rpc import grpc_server
from sds.config import AgentConfig
from sds.debug_api import DebugApi, anchored
from sds.logger_api import LoggerApi
from tests.sds.lab import Authority, Lab, eventually, refused, status_of
from tests.sds.test_agent import (  # noqa: F401 - with the fixtures of the whole agent and its server
    agent,
    create,
    held,
    home,
    server,
    started,
    values,
)
from tests.support.clock import FakeClock


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """This process's log, as JSON; at info afterwards."""
    stream = io.StringIO()
    configure("json", "info", stream)
    yield stream
    configure()


def events(stream: io.StringIO) -> list[str]:
    return [json.loads(line)["event"] for line in stream.getvalue().splitlines()]


@pytest.fixture
async def logger(written: io.StringIO) -> AsyncIterator[agent_logger_pb2_grpc.LoggerStub]:
    async with Lab() as lab:
        serving = grpc_server(f"{lab.directory}/admin.sock")
        agent_logger_pb2_grpc.add_LoggerServicer_to_server(LoggerApi(LogLevels("info")), serving)
        await serving.start()
        async with grpc.aio.insecure_channel(f"unix:{lab.directory}/admin.sock") as channel:
            yield agent_logger_pb2_grpc.LoggerStub(channel)
        await serving.stop(None)


def shown(answer: types_pb2.Logger) -> tuple[str, str]:
    name = types_pb2.LogLevel.Name
    return name(answer.current_level), name(answer.launch_level)


def to(level: int) -> agent_logger_pb2.SetLogLevelRequest:
    return agent_logger_pb2.SetLogLevelRequest(new_level=level)


async def test_the_log_level_changes_and_returns(logger: agent_logger_pb2_grpc.LoggerStub, written: io.StringIO):
    log, library = get("test"), logging.getLogger("some.library")
    assert shown(await logger.GetLogger(agent_logger_pb2.GetLoggerRequest())) == ("INFO", "INFO")
    log.debug("too fine")
    assert shown(await logger.SetLogLevel(to(types_pb2.DEBUG))) == ("DEBUG", "INFO")
    log.debug("fine")
    assert shown(await logger.SetLogLevel(to(types_pb2.ERROR))) == ("ERROR", "INFO")
    log.warning("too loud")
    library.warning("too loud as well")
    log.error("grave")
    assert shown(await logger.GetLogger(agent_logger_pb2.GetLoggerRequest())) == ("ERROR", "INFO")
    assert shown(await logger.ResetLogLevel(agent_logger_pb2.ResetLogLevelRequest())) == ("INFO", "INFO")
    log.info("as before")
    library.warning("as before too")
    said = [event for event in events(written) if event != "log level changes"]
    assert said == ["fine", "grave", "as before", "as before too"]


@pytest.mark.parametrize(("level", "kept"), [("PANIC", []), ("FATAL", []), ("TRACE", ["grave", "fine"])])
async def test_levels_that_only_spire_has(
    logger: agent_logger_pb2_grpc.LoggerStub, written: io.StringIO, level: str, kept: list[str]
):
    assert shown(await logger.SetLogLevel(to(types_pb2.LogLevel.Value(level)))) == (level, "INFO")
    get("test").error("grave")
    get("test").debug("fine")
    assert [event for event in events(written) if event in ("grave", "fine")] == kept


async def test_no_level_and_no_such_level_are_refused(logger: agent_logger_pb2_grpc.LoggerStub):
    assert await refused(logger.SetLogLevel(to(0))) == ("INVALID_ARGUMENT", "the new log level is missing")
    assert await refused(logger.SetLogLevel(to(99))) == ("INVALID_ARGUMENT", "there is no log level `99`")


async def test_the_whole_agent_tells_about_itself(agent):  # noqa: F811 - the fixture
    async with grpc.aio.insecure_channel(f"unix:{agent.config.admin_socket_path}") as channel:
        info = await agent_debug_pb2_grpc.DebugStub(channel).GetInfo(agent_debug_pb2.GetInfoRequest())
        level = await agent_logger_pb2_grpc.LoggerStub(channel).GetLogger(agent_logger_pb2.GetLoggerRequest())
    own, root = info.svid_chain
    assert agent.identity.svid is not None
    assert (own.id.trust_domain, own.id.path) == ("example.org", agent.identity.svid.id.path)
    assert own.expires_at == int(agent.identity.svid.not_after.timestamp())
    assert own.subject == "O=SPIRE,C=US"
    assert (root.id.trust_domain, root.id.path) == ("example.org", "")
    assert root.expires_at > own.expires_at
    assert info.last_sync_success > 0
    assert shown(level) == ("INFO", "INFO")


async def test_a_delegate_is_served_by_the_whole_agent(home, server):  # noqa: F811 - the fixtures
    (home / "token").write_text(await server.token())
    config = values(home, server, authorized_delegates=["spiffe://example.org/proxy"])
    async with started(from_values(config, AgentConfig)) as running:
        await eventually(lambda: running.identity.svid is not None and running.cache.ready, seconds=10)
        async with grpc.aio.insecure_channel(f"unix:{running.config.admin_socket_path}") as channel:
            stub = agent_delegatedidentity_pb2_grpc.DelegatedIdentityStub(channel)
            bundles = agent_delegatedidentity_pb2.SubscribeToX509BundlesRequest()
            assert await status_of(stub.SubscribeToX509Bundles(bundles)) == ("PERMISSION_DENIED", "no identity issued")
            await held(running, await create(running, server, "/proxy"))
            other = await create(running, server, "/other", "user:nobody-here")
            await held(running, other)
            wanted = types_pb2.Selector(type="unix", value="user:nobody-here")
            call = stub.SubscribeToX509SVIDs(
                agent_delegatedidentity_pb2.SubscribeToX509SVIDsRequest(selectors=[wanted])
            )
            message = await asyncio.wait_for(call.read(), 5)
            assert [item.x509_svid.id.path for item in message.x509_svids] == ["/other"]
            assert len((await stub.SubscribeToX509Bundles(bundles).read()).ca_certificates) == 1


async def test_these_services_are_not_on_the_workload_socket(agent):  # noqa: F811 - the fixture
    async with grpc.aio.insecure_channel(f"unix:{agent.config.workload_socket}") as channel:
        debug = agent_debug_pb2_grpc.DebugStub(channel).GetInfo(agent_debug_pb2.GetInfoRequest())
        assert (await refused(debug))[0] == "UNIMPLEMENTED"
        logger = agent_logger_pb2_grpc.LoggerStub(channel).SetLogLevel(to(types_pb2.DEBUG))
        assert (await refused(logger))[0] == "UNIMPLEMENTED"


async def test_an_agent_that_has_nothing_yet_and_one_whose_root_is_gone():
    clock = FakeClock()
    root, other = Authority(now=clock.now()), Authority(now=clock.now())
    held: list[TrustBundle] = []
    service = DebugApi(
        clock=clock,
        started=clock.monotonic(),
        chain=lambda: (root.der,) if held else (),
        bundle=lambda: held[0] if held else None,
        last_sync_at=lambda: None,
        x509_svids=lambda: 2,
        jwt_svids=lambda: 3,
    )
    await clock.advance(5)
    info = await service.GetInfo(agent_debug_pb2.GetInfoRequest(), None)  # type: ignore[arg-type]
    assert info == agent_debug_pb2.GetInfoResponse(
        uptime=5, svids_count=2, cached_x509_svids_count=2, cached_jwt_svids_count=3
    )
    held.append(other.bundle())
    assert len(anchored([root.der], held[0])) == 1
    assert len(anchored([root.der], root.bundle())) == 1
