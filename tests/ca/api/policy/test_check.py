"""ext_authz on the server: about the caller's own workload alone, for who has a grant; and the log, to who is local."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from ca.proto.burgee import decisions_pb2, decisions_pb2_grpc
from ca.runtime.rpc_errors import error_of
from policy.decision_record import DecisionRecord
from tests.ca.api.policy.conftest import ID, Callers, policy, workload
from tests.ca.api.policy.http import Client
from tests.policy.test_ext_authz import Issue, check, issue  # noqa: F401 a fixture
from tests.support.server import RunningServer

METHOD = "/envoy.service.auth.v3.Authorization/Check"
ORDERS, LEDGER = f"{ID}/ns/shop/sa/orders", f"{ID}/ns/bank/sa/ledger"
GET = [{"to": [{"operation": {"methods": ["GET"]}}]}]


@pytest.fixture
async def filled(local: Client) -> Client:
    everything = policy("ledger", "bank", rules=[{}])
    objects = [workload(), workload("ledger", "bank"), policy(rules=GET), everything]
    assert (await local("POST", "/apply", {"changes": [{"object": one} for one in objects]})).status == 200
    grants = {"orders": (ORDERS, "reader", ["shop"]), "ledger": (LEDGER, "reader", ["shop"])}
    for name, (who, role, namespaces) in grants.items():
        made = await local("PUT", f"/grants/{name}", {"spiffe_id": who, "role": role, "namespaces": namespaces})
        assert made.status == 201, made.data
    return local


async def ask(server: RunningServer, who: str, asked: Any = None, **metadata: str) -> Any:
    """The answer to a caller with this SVID, or the reason of a refusal."""
    caller = await server.caller(await server.mint(who.removeprefix(ID)))
    pairs = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    raw = asked if isinstance(asked, bytes) else (asked or check()).SerializeToString()
    try:
        answered = await caller.channel.unary_unary(METHOD)(raw, metadata=pairs, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error_of(error).reason
    return CheckResponse.FromString(answered)


async def test_a_granted_caller_is_answered_about_itself(server: RunningServer, filled: Client) -> None:
    allowed = await ask(server, ORDERS)
    assert allowed.status.code == 0
    refused = await ask(server, ORDERS, check(method="POST"), x_burgee_decision="p1-1")
    assert refused.status.code == 7
    assert refused.dynamic_metadata["decision"] == "p1-1"
    record = (await filled("GET", "/decisions?id=p1-1")).body["items"][0]
    assert (record["target"], record["source"], record["allowed"]) == (ORDERS, "ext_authz", False)


async def test_no_message_names_another_target(server: RunningServer, filled: Client) -> None:
    asked = check(method="POST", headers={"x-burgee-target": LEDGER})
    asked.attributes.destination.principal = LEDGER
    asked.attributes.context_extensions["x-burgee-target"] = LEDGER
    assert (await ask(server, ORDERS, asked)).status.code == 7
    assert await ask(server, ORDERS, asked, x_burgee_target=LEDGER) == "TARGET_NOT_HELD"
    assert (await ask(server, ORDERS, asked, x_burgee_target=ORDERS)).status.code == 7


async def test_without_a_grant_for_its_own_namespace_nobody_is_answered(
    server: RunningServer, filled: Client, callers: Callers
) -> None:
    assert await ask(server, LEDGER) == "POLICY_FORBIDDEN"  # its grant is for another's
    assert await ask(server, f"{ID}/stranger") == "POLICY_FORBIDDEN"
    assert (await filled("DELETE", "/grants/orders", headers={"If-Match": "*"})).status in (200, 204)
    assert await ask(server, ORDERS) == "POLICY_FORBIDDEN"


async def test_what_is_no_check_is_refused(server: RunningServer, filled: Client) -> None:
    assert await ask(server, ORDERS, b"\xff\xff") == "CHECK_MALFORMED"
    assert await ask(server, ORDERS, b"\x0a" * 300_000) == "CHECK_TOO_LARGE"
    assert (await ask(server, ORDERS, CheckRequest())).status.code == 7


async def test_a_provider_is_nobody_here(server: RunningServer, filled: Client) -> None:
    changed = {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": GET}
    await filled("PUT", "/authorization-policies/shop/ask", policy("ask", **changed), headers={"If-None-Match": "*"})
    assert (await ask(server, ORDERS)).status.code == 7


async def test_the_rate_of_one_caller_is_bounded(server: RunningServer, filled: Client) -> None:
    caller = await server.caller(await server.mint(ORDERS.removeprefix(ID)))
    call = caller.channel.unary_unary(METHOD)
    raw = check().SerializeToString()
    server.server.checks._rates.per_second = 1.0
    server.server.checks._rates.capacity = 5.0
    answers = await asyncio.gather(*(call(raw, timeout=20) for _ in range(40)), return_exceptions=True)
    refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert 25 <= len(refused) < 40
    assert {error_of(one).reason for one in refused} == {"RATE_LIMITED"}


async def test_tokens_are_verified_with_the_servers_bundle(
    server: RunningServer,
    filled: Client,
    issue: Issue,  # noqa: F811
) -> None:
    claim = [{"when": [{"key": "request.auth.claims[sub]", "values": [f"{ID}/web"]}]}]
    etag = (await filled("GET", "/authorization-policies/shop/orders")).headers["etag"]
    written = await filled(
        "PUT", "/authorization-policies/shop/orders", policy(rules=claim), headers={"If-Match": etag}
    )
    assert written.status == 200, written.data
    from ca.proto.spire import server_svid_pb2, server_svid_pb2_grpc, types_pb2

    minted = await server_svid_pb2_grpc.SVIDStub(server.local.channel).MintJWTSVID(
        server_svid_pb2.MintJWTSVIDRequest(
            id=types_pb2.SPIFFEID(trust_domain="example.org", path="/web"), audience=[ORDERS]
        )
    )
    good = check(issue(f"{ID}/any"), headers={"authorization": f"Bearer {minted.svid.token}"})
    assert (await ask(server, ORDERS, good)).status.code == 0
    bad = check(issue(f"{ID}/any"), headers={"authorization": f"Bearer {minted.svid.token[:-4]}AAAA"})
    assert (await ask(server, ORDERS, bad)).status.code == 7


async def test_a_key_that_is_taken_back_vouches_for_nothing_any_more(
    server: RunningServer,
    filled: Client,
    issue: Issue,  # noqa: F811
) -> None:
    from ca.proto.spire import server_svid_pb2, server_svid_pb2_grpc, types_pb2

    claim = [{"when": [{"key": "request.auth.claims[sub]", "values": [f"{ID}/web"]}]}]
    written = await filled("PUT", "/authorization-policies/shop/orders", policy(rules=claim), headers={"If-Match": "*"})
    assert written.status == 200, written.data
    minted = await server_svid_pb2_grpc.SVIDStub(server.local.channel).MintJWTSVID(
        server_svid_pb2.MintJWTSVIDRequest(
            id=types_pb2.SPIFFEID(trust_domain="example.org", path="/web"), audience=[ORDERS]
        )
    )
    asked = check(issue(f"{ID}/any"), headers={"authorization": f"Bearer {minted.svid.token}"})
    assert (await ask(server, ORDERS, asked)).status.code == 0
    trust = server.server.checks._trust
    bundle = trust.own
    trust.put(replace(bundle, jwt_authorities=()))
    try:
        assert (await ask(server, ORDERS, asked)).status.code == 7
    finally:
        trust.put(bundle)
    assert (await ask(server, ORDERS, asked)).status.code == 0


async def test_the_log_is_for_the_admin_socket(server: RunningServer, filled: Client) -> None:
    await ask(server, ORDERS, x_burgee_decision="p1-2")
    stub = decisions_pb2_grpc.DecisionsStub(server.local.channel)
    found = await stub.Get(decisions_pb2.GetRequest(id="p1-2"))
    assert DecisionRecord.from_json(found.record).target == ORDERS
    caller = await server.caller(await server.mint(ORDERS.removeprefix(ID)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await decisions_pb2_grpc.DecisionsStub(caller.channel).Get(decisions_pb2.GetRequest(id="p1-2"))
    assert caught.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
