"""Every RPC that the server registers, tried by every kind of caller, against what was recorded of SPIRE."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import status_pb2

from ca.api.tiers import AGENTS_METHODS, TIERS
from ca.proto.burgee import (
    admin_pb2,
    authority_pb2,
    debug_pb2,
    decisions_pb2,
    exchange_pb2,
    foresight_pb2,
    issuing_pb2,
    node_pb2,
)
from ca.proto.istio import ca_pb2
from ca.proto.spire import (
    server_agent_pb2,
    server_bundle_pb2,
    server_debug_pb2,
    server_entry_pb2,
    server_localauthority_pb2,
    server_logger_pb2,
    server_svid_pb2,
    server_trustdomain_pb2,
    types_pb2,
)
from ca.runtime.rpc import connect
from ca.runtime.rpc_errors import error_of
from tests.ca.api.refusals import Code, refused
from tests.support.server import Caller, RunningServer, entry, running_server, spiffe_id

CALLERS = ("local", "admin", "agent", "downstream", "workload", "anonymous")

_MANAGE = "yes yes no no no no"
_AGENT = "no NA yes NA NA no"
_DOWNSTREAM = "no no no yes no no"
_ANYONE = "yes yes yes yes yes yes"
_LOCAL = "yes absent absent absent absent absent"
_HERE = "yes no no no no no"
_SVID = "no yes yes yes yes no"
"""Grants say what it gets."""
_ELSEWHERE = "absent absent absent absent absent absent"
"""On a listener of its own, where it is configured."""

# One row per RPC, in the order of CALLERS. `NA` is a denial with the details AGENT_NOT_ATTESTED.
EXPECTED = {
    "/spire.api.server.agent.v1.Agent/CountAgents": _MANAGE,
    "/spire.api.server.agent.v1.Agent/ListAgents": _MANAGE,
    "/spire.api.server.agent.v1.Agent/GetAgent": _MANAGE,
    "/spire.api.server.agent.v1.Agent/CreateJoinToken": _MANAGE,
    "/spire.api.server.agent.v1.Agent/BanAgent": _MANAGE,
    "/spire.api.server.agent.v1.Agent/DeleteAgent": _MANAGE,
    "/spire.api.server.agent.v1.Agent/AttestAgent": _ANYONE,
    "/spire.api.server.agent.v1.Agent/RenewAgent": _AGENT,
    "/spire.api.server.agent.v1.Agent/PostStatus": _AGENT,
    "/spire.api.server.entry.v1.Entry/BatchCreateEntry": _MANAGE,
    "/spire.api.server.entry.v1.Entry/GetEntry": _MANAGE,
    "/spire.api.server.entry.v1.Entry/CountEntries": _MANAGE,
    "/spire.api.server.entry.v1.Entry/ListEntries": _MANAGE,
    "/spire.api.server.entry.v1.Entry/BatchUpdateEntry": _MANAGE,
    "/spire.api.server.entry.v1.Entry/BatchDeleteEntry": _MANAGE,
    "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries": _AGENT,
    "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries": _AGENT,
    "/spire.api.server.svid.v1.SVID/BatchNewX509SVID": _AGENT,
    "/spire.api.server.svid.v1.SVID/NewJWTSVID": _AGENT,
    "/spire.api.server.svid.v1.SVID/BatchNewWITSVID": _AGENT,
    "/spire.api.server.svid.v1.SVID/MintX509SVID": _MANAGE,
    "/spire.api.server.svid.v1.SVID/MintJWTSVID": _MANAGE,
    "/spire.api.server.svid.v1.SVID/MintWITSVID": _MANAGE,
    "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA": _DOWNSTREAM,
    "/spire.api.server.bundle.v1.Bundle/GetBundle": _ANYONE,
    "/spire.api.server.bundle.v1.Bundle/CountBundles": _MANAGE,
    "/spire.api.server.bundle.v1.Bundle/AppendBundle": _MANAGE,
    "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority": _DOWNSTREAM,
    "/spire.api.server.bundle.v1.Bundle/PublishWITAuthority": _DOWNSTREAM,
    "/spire.api.server.bundle.v1.Bundle/ListFederatedBundles": _MANAGE,
    "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle": "yes yes yes NA NA no",
    "/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle": _MANAGE,
    "/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle": _MANAGE,
    "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle": _MANAGE,
    "/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle": _MANAGE,
    "/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships": _MANAGE,
    "/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship": _MANAGE,
    "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship": _MANAGE,
    "/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship": _MANAGE,
    "/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship": _MANAGE,
    "/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority": _MANAGE,
    "/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority": _MANAGE,
    "/spire.api.server.debug.v1.Debug/GetInfo": _LOCAL,
    "/spire.api.server.logger.v1.Logger/GetLogger": _LOCAL,
    "/spire.api.server.logger.v1.Logger/SetLogLevel": _LOCAL,
    "/spire.api.server.logger.v1.Logger/ResetLogLevel": _LOCAL,
    "/grpc.health.v1.Health/Check": _LOCAL,
    "/grpc.health.v1.Health/List": _LOCAL,
    "/grpc.health.v1.Health/Watch": _LOCAL,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _LOCAL,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _LOCAL,
    "/burgee.node.v1.Node/Sync": _AGENT,
    "/burgee.node.v1.Node/GetTime": _ANYONE,
    "/burgee.admin.v1.Admin/GetStatus": _MANAGE,
    "/burgee.admin.v1.Admin/MintX509SVID": _MANAGE,
    "/burgee.admin.v1.Admin/MintJWTSVID": _MANAGE,
    "/burgee.admin.v1.Admin/ListIssued": _MANAGE,
    "/burgee.admin.v1.Admin/ListAudit": _MANAGE,
    "/burgee.admin.v1.Admin/ListJoinTokens": _MANAGE,
    "/burgee.admin.v1.Admin/CreateJoinToken": _MANAGE,
    "/burgee.admin.v1.Admin/RevokeJoinToken": _MANAGE,
    "/burgee.admin.v1.Admin/Prune": _MANAGE,
    "/burgee.admin.v1.Admin/ExplainAgent": _MANAGE,
    "/burgee.admin.v1.Admin/GetDoctorReport": _MANAGE,
    "/burgee.authority.v1.Authorities/GetStatus": _MANAGE,
    "/burgee.authority.v1.Authorities/Prepare": _MANAGE,
    "/burgee.authority.v1.Authorities/Activate": _MANAGE,
    "/burgee.authority.v1.Authorities/Taint": _MANAGE,
    "/burgee.authority.v1.Authorities/Revoke": _MANAGE,
    "/burgee.authority.v1.Authorities/Prune": _MANAGE,
    "/burgee.authority.v1.Authorities/Rotate": _MANAGE,
    "/burgee.exchange.v1.Exchange/ExchangeX509SVID": _ANYONE,
    "/burgee.exchange.v1.Exchange/ExchangeJWTSVID": _ANYONE,
    "/istio.v1.auth.IstioCertificateService/CreateCertificate": _ELSEWHERE,
    "/burgee.issuing.v1.Issuing/BatchIssueX509SVID": _MANAGE,
    "/burgee.foresight.v1.Foresight/ExplainTtl": _MANAGE,
    "/burgee.foresight.v1.Foresight/GetOutageBudget": _MANAGE,
    "/burgee.foresight.v1.Foresight/CheckUpstream": _MANAGE,
    "/burgee.debug.v1.Debug/GetReport": _MANAGE,
    "/burgee.decisions.v1.Decisions/Get": _HERE,
    "/burgee.decisions.v1.Decisions/List": _HERE,
    "/burgee.decisions.v1.Decisions/Watch": _HERE,
    "/envoy.service.auth.v3.Authorization/Check": _SVID,
}

HTTP = {row for row in TIERS if not row.startswith("/")}
"""Tried in test_rest.py, where every row has a route; those whose rows are GRANTED in policy/test_escalation.py."""

STREAMS = {
    "AttestAgent",
    "SyncAuthorizedEntries",
    "Sync",
    "Watch",
    "ListIssued",
    "ListAudit",
    "ListJoinTokens",
    "ServerReflectionInfo",
}
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def registered() -> set[str]:
    """From the descriptors, not from the table under test."""
    from envoy.service.auth.v3 import external_auth_pb2
    from grpc_health.v1 import health_pb2
    from grpc_reflection.v1alpha import reflection_pb2

    files = (
        server_agent_pb2, server_entry_pb2, server_svid_pb2, server_bundle_pb2, server_trustdomain_pb2,
        server_localauthority_pb2, server_debug_pb2, server_logger_pb2, node_pb2, admin_pb2, authority_pb2, debug_pb2,
        exchange_pb2, foresight_pb2, issuing_pb2, ca_pb2, health_pb2, reflection_pb2, decisions_pb2, external_auth_pb2,
    )  # fmt: skip
    return {REFLECTION} | {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


async def judge(caller: Caller, method: str) -> str:
    name = method.rpartition("/")[2]
    try:
        await caller.raw(method, streaming=name in STREAMS)
    except grpc.aio.AioRpcError as error:
        return verdict(error, method)
    return "yes"


def verdict(error: grpc.aio.AioRpcError, method: str) -> str:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED and "unknown service" in (error.details() or ""):
        return "absent"
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return f"no answer: {error.code().name} {error.details()}"
    if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
        return "yes"
    if error_of(error).reason == "POLICY_FORBIDDEN":  # let in, and without a grant
        return "yes"
    assert error.details() == f"authorization denied for method {method}"
    reason = denied_reason(error)
    return {None: "no", "AGENT_NOT_ATTESTED": "NA"}.get(reason, f"odd reason {reason}")


def denied_reason(error: grpc.aio.AioRpcError) -> str | None:
    """The name in SPIRE's PermissionDeniedDetails, None where there are none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                found = types_pb2.PermissionDeniedDetails()
                if detail.Is(found.DESCRIPTOR) and detail.Unpack(found):
                    return types_pb2.PermissionDeniedDetails.Reason.Name(found.reason)
    return None


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


async def caller_named(server: RunningServer, name: str) -> Caller:
    if name == "local":
        return server.local
    if name == "anonymous":
        return await server.caller()
    if name == "agent":
        return (await server.agent())[1]
    await server.create(
        entry(f"/{name}", "/spire/agent/join_token/x", admin=name == "admin", downstream=name == "downstream")
    )
    return await server.caller(await server.mint(f"/{name}"))


def test_every_registered_method_has_a_row_here_and_in_the_table() -> None:
    assert registered() == set(EXPECTED) == set(TIERS) - HTTP


@pytest.mark.parametrize("name", CALLERS)
async def test_matrix(server: RunningServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.runtime.log_levels.set_level", lambda level: None)  # this process has other tests to run
    caller = await caller_named(server, name)
    column = CALLERS.index(name)
    found = {method: await judge(caller, method) for method in EXPECTED}
    assert found == {method: row.split()[column] for method, row in EXPECTED.items()}


async def test_a_method_without_a_row_is_refused_to_everyone(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "/spire.api.server.bundle.v1.Bundle/GetBundle"
    monkeypatch.delitem(TIERS, method)
    for caller in (server.local, await server.caller(), (await server.agent())[1]):
        assert await judge(caller, method) == "no"


@pytest.mark.parametrize("method", ["/spire.api.server.nope.v1.Nope/X", "/spire.api.server.entry.v1.Entry/Nope"])
async def test_unknown_methods_are_unimplemented_for_everyone(server: RunningServer, method: str) -> None:
    for caller in (server.local, await server.caller()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.raw(method)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_rights_follow_the_entry_at_once(server: RunningServer) -> None:
    (made,) = await server.create(entry("/boss", "/spire/agent/join_token/x", admin=True))
    caller = await server.caller(await server.mint("/boss"))
    method = "/spire.api.server.entry.v1.Entry/CountEntries"
    assert await judge(caller, method) == "yes"
    await server.local.entries.BatchDeleteEntry(server_entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    assert await judge(caller, method) == "no"


@pytest.mark.parametrize("socket", ["grpc.sock", "agents.sock"])
async def test_nobody_reaches_the_private_servers_past_the_gate(server: RunningServer, socket: str) -> None:
    channel = connect(server.config.data_dir / "private" / socket)
    try:
        for method in ("/spire.api.server.bundle.v1.Bundle/GetBundle", "/grpc.health.v1.Health/Check", "/x.Y/Z"):
            with refused(Code.UNAUTHENTICATED, reason="PEER_UNKNOWN"):
                await Caller(channel).raw(method)
    finally:
        await channel.close()


async def test_acting_agents_alone_have_the_server_for_agents(server: RunningServer) -> None:
    """With its socket's name gone, whoever connects anew is answered unless it is an acting agent."""
    _, before = await server.agent()
    await before.raw("/burgee.node.v1.Node/GetTime")
    agent, banned = await server.attest(), await server.attest()
    workload = await server.mint("/w")
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=spiffe_id(banned.path)))
    (server.config.data_dir / "private" / "agents.sock").unlink()
    for other in (None, workload, banned):
        await (await server.caller(other)).raw("/burgee.node.v1.Node/GetTime")
    with pytest.raises(grpc.aio.AioRpcError):
        await (await server.caller(agent)).raw("/burgee.node.v1.Node/GetTime")
    await before.raw("/burgee.node.v1.Node/GetTime")


def test_what_an_agent_may_call_waits_for_nothing_that_it_may_not() -> None:
    """Else an agent that floods with a method nobody serves holds up, say, the bundles of all."""
    agents = CALLERS.index("agent")
    allowed = {method for method, row in EXPECTED.items() if row.split()[agents] == "yes"}
    assert {"/spire.api.server.bundle.v1.Bundle/GetBundle", "/spire.api.server.svid.v1.SVID/NewJWTSVID"} < allowed
    assert allowed - AGENTS_METHODS == {"/envoy.service.auth.v3.Authorization/Check"}, "grants say what that gets"
