"""The Delegated Identity API: who may ask, for whom, what comes, and when a stream ends."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from subprocess import Popen

import grpc
import pytest
from pydantic import ValidationError

from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from ca.proto.spire import agent_delegatedidentity_pb2 as pb
from ca.proto.spire import (
    agent_delegatedidentity_pb2_grpc,
    agent_logger_pb2,
    agent_logger_pb2_grpc,
    types_pb2,
)
from ca.runtime.log_levels import LogLevels
from ca.runtime.rpc import grpc_server
from sds.admin_services import DELEGATED
from sds.config import AdminSocketConfig, AgentConfig
from sds.delegated import DelegatedIdentityApi
from sds.jwt_cache import JwtIssued
from sds.logger_api import LoggerApi
from sds.sockets import Administrators, AdministratorsOnly, Endpoint, admin_access
from tests.sds.lab import API, FED, TD, WEB, Authority, Lab, entry, eventually, quiet, refused, status_of

PROXY = Selector("unix", "user:proxy")
Stub = agent_delegatedidentity_pb2_grpc.DelegatedIdentityStub


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """The caller is the proxy; it has no entry yet."""
    async with Lab(interval=0.1) as lab:
        lab.selectors = frozenset({PROXY})
        yield lab


@pytest.fixture
def api(lab: Lab) -> DelegatedIdentityApi:
    return DelegatedIdentityApi(
        peer_of=lambda context: lab.caller,
        delegates=frozenset({SpiffeId(TD, "/proxy")}),
        workloads=lab.workloads,
        cache=lab.cache,
        jwts=lab.jwts,
    )


@pytest.fixture
async def stub(lab: Lab, api: DelegatedIdentityApi) -> AsyncIterator[Stub]:
    serving = grpc_server(f"{lab.directory}/admin.sock")
    agent_delegatedidentity_pb2_grpc.add_DelegatedIdentityServicer_to_server(api, serving)
    await serving.start()
    async with grpc.aio.insecure_channel(f"unix:{lab.directory}/admin.sock") as channel:
        yield Stub(channel)
    await serving.stop(None)


@pytest.fixture
def process() -> Iterator[Popen[bytes]]:
    """Another process of this machine."""
    started = Popen(["sleep", "60"])
    yield started
    started.kill()
    started.wait()


DELEGATE = entry("p", "/proxy", PROXY)


def of(*selectors: Selector) -> list[types_pb2.Selector]:
    return [types_pb2.Selector(type=s.type, value=s.value) for s in selectors]


def svids(stub: Stub, *selectors: Selector, pid: int = 0):
    return stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(selectors=of(*selectors), pid=pid))


def jwts(stub: Stub, *selectors: Selector, pid: int = 0, audience: tuple[str, ...] = ("a",)):
    return stub.FetchJWTSVIDs(pb.FetchJWTSVIDsRequest(audience=audience, selectors=of(*selectors), pid=pid))


def paths(message: pb.SubscribeToX509SVIDsResponse) -> list[str]:
    return [item.x509_svid.id.path for item in message.x509_svids]


async def test_svids_by_selectors_as_they_come_change_and_go(lab: Lab, stub: Stub):
    lab.snapshot(DELEGATE)
    call = svids(stub, WEB, API)
    assert await call.read() == pb.SubscribeToX509SVIDsResponse()  # nothing matches: the stream stays open
    lab.put(entry("b", "/b", WEB, hint="h"), entry("a", "/a", API), entry("c", "/c", WEB, PROXY))
    message = await asyncio.wait_for(call.read(), 5)
    while len(message.x509_svids) < 2:
        message = await asyncio.wait_for(call.read(), 5)
    assert paths(message) == ["/a", "/b"]
    held = lab.cache.svid("b")
    assert held is not None
    item = message.x509_svids[1]
    assert (tuple(item.x509_svid.cert_chain), item.x509_svid_key) == (held.chain, held.key)
    assert (item.x509_svid.expires_at, item.x509_svid.hint) == (int(held.not_after.timestamp()), "h")
    assert item.x509_svid.id.trust_domain == "example.org"
    lab.remove("a")
    assert paths(await asyncio.wait_for(call.read(), 5)) == ["/b"]
    lab.put(dataclasses.replace(entry("b", "/b", WEB), federates_with=(FED,)), bundles=(lab.foreign.bundle(),))
    assert list((await asyncio.wait_for(call.read(), 5)).federates_with) == ["spiffe://fed.org"]
    lab.remove("b")
    assert await asyncio.wait_for(call.read(), 5) == pb.SubscribeToX509SVIDsResponse()


async def test_svids_of_a_process(lab: Lab, stub: Stub, process: Popen[bytes]):
    lab.by_pid[process.pid] = frozenset({WEB})
    await lab.issued(DELEGATE, entry("a", "/a"))
    call = svids(stub, pid=process.pid)
    assert paths(await call.read()) == ["/a"]
    tokens = await jwts(stub, pid=process.pid)
    assert [svid.id.path for svid in tokens.svids] == ["/a"]
    process.kill()
    assert await status_of(call) == ("UNAVAILABLE", "workload attestation failed")


@pytest.mark.parametrize("pid", [999_999_999, -1])
async def test_a_process_that_does_not_exist(lab: Lab, stub: Stub, pid: int):
    lab.snapshot(DELEGATE)
    assert await status_of(svids(stub, pid=pid)) == ("UNAVAILABLE", "workload attestation failed")
    assert await refused(jwts(stub, pid=pid)) == ("UNAVAILABLE", "workload attestation failed")


async def test_jwt_svids(lab: Lab, stub: Stub):
    lab.snapshot(DELEGATE, entry("a", "/a", hint="h"), entry("b", "/b"))
    answer = await jwts(stub, WEB, audience=("q", "p"))
    assert [(svid.id.path, svid.hint) for svid in answer.svids] == [("/a", "h"), ("/b", "")]
    assert all(svid.expires_at - svid.issued_at == 300 for svid in answer.svids)
    assert [asked for asked, _ in lab.server.jwts_asked] == ["a", "b"]
    assert await jwts(stub, WEB, audience=("p", "q")) == answer  # from the cache
    assert await refused(jwts(stub, API)) == ("PERMISSION_DENIED", "no identity issued")


async def test_identities_that_administer_or_sign_are_not_handed_out(lab: Lab, stub: Stub):
    """A gateway that asks for everybody's identity does not become the server's administrator, nor a server."""
    foreign = (lab.foreign.bundle(),)
    lab.snapshot(DELEGATE, entry("a", "/a"), federated=True)
    lab.put(
        dataclasses.replace(entry("root", "/root", WEB, admin=True), federates_with=(FED,)),
        entry("sub", "/sub", WEB, downstream=True),
        bundles=foreign,
    )
    await eventually(lambda: all(lab.cache.svid(name) for name in ("a", "root", "sub")))
    message = await svids(stub, WEB).read()
    assert paths(message) == ["/a"]
    assert not message.federates_with
    assert [svid.id.path for svid in (await jwts(stub, WEB)).svids] == ["/a"]
    lab.remove("a")
    assert await refused(jwts(stub, WEB)) == ("PERMISSION_DENIED", "no identity issued")
    assert [asked for asked, _ in lab.server.jwts_asked] == ["a"]


async def test_a_relabelled_process_has_other_identities(lab: Lab, stub: Stub, process: Popen[bytes]):
    """A CNI's stream by pid follows what the process is."""

    lab.by_pid[process.pid] = frozenset({WEB})
    await lab.issued(DELEGATE, entry("a", "/a"), entry("b", "/b", API))
    call = svids(stub, pid=process.pid)
    assert paths(await call.read()) == ["/a"]
    lab.by_pid[process.pid] = frozenset({API})
    message = await asyncio.wait_for(call.read(), 5)
    while paths(message) != ["/b"]:
        message = await asyncio.wait_for(call.read(), 5)


async def test_bundles_are_all_that_the_agent_holds(lab: Lab, stub: Stub):
    lab.snapshot(DELEGATE)
    x509 = stub.SubscribeToX509Bundles(pb.SubscribeToX509BundlesRequest())
    jwt = stub.SubscribeToJWTBundles(pb.SubscribeToJWTBundlesRequest())
    assert dict((await x509.read()).ca_certificates) == {"spiffe://example.org": lab.authority.der}
    assert list((await jwt.read()).bundles) == ["spiffe://example.org"]
    lab.put(bundles=(lab.foreign.bundle(),))  # no entry of the delegate federates with it
    assert (await asyncio.wait_for(x509.read(), 5)).ca_certificates["spiffe://fed.org"] == lab.foreign.der
    keys = json.loads((await asyncio.wait_for(jwt.read(), 5)).bundles["spiffe://fed.org"])["keys"]
    assert [key["kid"] for key in keys] == [lab.foreign.kid]
    new = Authority()
    lab.put(bundles=(lab.authority.bundle(new),))
    certificates = (await asyncio.wait_for(x509.read(), 5)).ca_certificates
    assert certificates["spiffe://example.org"] == lab.authority.der + new.der
    lab.put(entry("x"))
    await quiet(x509)
    assert len(lab.cache.on_change) == 2
    x509.cancel()
    jwt.cancel()
    await eventually(lambda: len(lab.cache.on_change) == 0)


async def every_rpc(stub: Stub) -> set[tuple[str, str]]:
    """The answers of all four to a caller that is refused by each."""
    return {
        await status_of(svids(stub, WEB)),
        await status_of(stub.SubscribeToX509Bundles(pb.SubscribeToX509BundlesRequest())),
        await status_of(stub.SubscribeToJWTBundles(pb.SubscribeToJWTBundlesRequest())),
        await refused(jwts(stub, WEB)),
    }


async def test_who_has_no_identity_or_none_that_is_a_delegate_is_refused(lab: Lab, stub: Stub):
    lab.snapshot(entry("a", "/a"))
    assert await every_rpc(stub) == {("PERMISSION_DENIED", "no identity issued")}
    lab.put(entry("q", "/no-proxy", PROXY))
    assert await every_rpc(stub) == {("PERMISSION_DENIED", "caller not configured as an authorized delegate")}
    assert lab.server.jwts_asked == []


async def test_a_delegate_that_is_one_no_more_is_sent_away(lab: Lab, stub: Stub):
    lab.snapshot(DELEGATE, entry("q", "/no-proxy", PROXY), entry("a", "/a"))
    calls = [
        svids(stub, WEB),
        stub.SubscribeToX509Bundles(pb.SubscribeToX509BundlesRequest()),
        stub.SubscribeToJWTBundles(pb.SubscribeToJWTBundlesRequest()),
    ]
    for call in calls:
        await call.read()
    lab.remove("p")
    ends = {await status_of(call) for call in calls}
    assert ends == {("PERMISSION_DENIED", "caller not configured as an authorized delegate")}
    assert lab.cache.streams() == 0


async def test_a_delegate_that_is_one_no_more_when_its_tokens_are_made_gets_none(
    lab: Lab, stub: Stub, monkeypatch: pytest.MonkeyPatch
):
    lab.snapshot(DELEGATE, entry("q", "/no-proxy", PROXY), entry("a", "/a"))
    make = lab.server.new_jwt_svid

    async def meanwhile(entry_id: str, audience: Sequence[str]) -> JwtIssued:
        lab.remove("p")
        return await make(entry_id, audience)

    monkeypatch.setattr(lab.server, "new_jwt_svid", meanwhile)
    ended = await refused(jwts(stub, WEB))
    assert ended == ("PERMISSION_DENIED", "caller not configured as an authorized delegate")
    assert lab.server.jwts_asked == [("a", ("a",))]


async def test_what_is_asked_for_must_be_clear(lab: Lab, stub: Stub):
    lab.snapshot(DELEGATE)
    either = ("INVALID_ARGUMENT", "must provide either selectors or non-zero PID, but not both")
    assert await status_of(svids(stub)) == either
    assert await status_of(svids(stub, WEB, pid=1)) == either
    assert await refused(jwts(stub)) == either
    assert await refused(jwts(stub, WEB, pid=1)) == either
    assert await refused(jwts(stub, WEB, audience=())) == ("INVALID_ARGUMENT", "audience must be specified")
    malformed = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(selectors=[types_pb2.Selector(value="x")]))
    code, detail = await status_of(malformed)
    assert (code, detail.partition(":")[0]) == ("INVALID_ARGUMENT", "could not parse provided selectors")
    many = svids(stub, *(Selector("a", str(number)) for number in range(257)))
    assert (await status_of(many))[0] == "INVALID_ARGUMENT"


async def test_whom_the_admin_socket_lets_in_for_what(lab: Lab, api: DelegatedIdentityApi):
    """A delegate that is no administrator can call this service, and nothing else on the socket."""
    lab.snapshot(entry("a", "/a"))
    guard = AdministratorsOnly(frozenset({os.getuid() + 1}), open_services=frozenset({DELEGATED}))
    private = Path(lab.directory) / "private"
    endpoint = Endpoint("admin", private_directory=private, clock=lab.clock, layers=[guard])
    agent_delegatedidentity_pb2_grpc.add_DelegatedIdentityServicer_to_server(api, endpoint.server)
    agent_logger_pb2_grpc.add_LoggerServicer_to_server(LoggerApi(LogLevels("info")), endpoint.server)
    path = Path(lab.directory) / "a" / "a.sock"
    await endpoint.listen(path, mode=0o600, dir_mode=0o700)
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            logger = agent_logger_pb2_grpc.LoggerStub(channel)
            denied = await refused(logger.GetLogger(agent_logger_pb2.GetLoggerRequest()))
            assert denied == ("PERMISSION_DENIED", "only an administrator of this agent may call this")
            assert await every_rpc(Stub(channel)) == {("PERMISSION_DENIED", "no identity issued")}
    finally:
        await endpoint.close()


def test_the_gate_admits_others_only_where_there_are_delegates():
    config = AdminSocketConfig(admin_uids=(4242,))
    uids = Administrators(config.admin_uids)
    assert all(uid in uids for uid in (0, os.geteuid(), 4242))
    stranger = dataclasses.make_dataclass("Cred", ["uid"])(4243)
    assert not admin_access(config)["admit"](stranger)
    assert admin_access(config, delegates=True)["admit"](stranger)


def test_delegates_are_spiffe_ids_of_workloads():
    def config(*delegates: str) -> AgentConfig:
        return AgentConfig(
            trust_domain="example.org",
            data_dir=Path("/tmp/x"),
            servers=("h:1",),
            trust={"insecure_bootstrap": True},
            node_attestor={"join_token": {}},
            authorized_delegates=delegates,
        )

    assert config("spiffe://example.org/proxy").delegates == {SpiffeId(TD, "/proxy")}
    for wrong in ("proxy", "spiffe://example.org", "spiffe://example.org/"):
        with pytest.raises(ValidationError):
            config(wrong)
