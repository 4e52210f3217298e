"""Checks over the agent's socket without a proxy: whose policies decide, what metadata may say, who else must agree."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from ca.errors import ConfigError, Unavailable
from ca.identity.selector import Selector
from ca.runtime.config import from_values
from ca.runtime.rpc_errors import error_of
from sds.authz import SERVICE
from sds.policy_config import PolicyConfig
from sds.providers import Provider, ProviderConfig
from tests.policy.test_ext_authz import check
from tests.sds.lab import WEB, entry, eventually
from tests.sds.policy_lab import PolicyLab, policy, workload
from tests.support.policy_authz import Authz

METHOD = f"/{SERVICE}/Check"
T, U = "spiffe://example.org/t", "spiffe://example.org/u"
GET = {"to": [{"operation": {"methods": ["GET"]}}]}


@pytest_asyncio.fixture
async def lab() -> AsyncIterator[PolicyLab]:
    async with PolicyLab() as found:
        found.snapshot(entry("t"))
        await found.enforce(
            policy("get", "ALLOW", GET),
            policy("all", "ALLOW", {}, namespace="open"),
            workload("t", T),
            workload("u", U, namespace="open"),
        )
        yield found


async def ask(lab: PolicyLab, asked: Any = None, **metadata: str) -> Any:
    """The answer, or the reason of a refusal."""
    pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    raw = asked if isinstance(asked, bytes) else (asked or check()).SerializeToString()
    async with grpc.aio.insecure_channel(f"unix:{lab.policy_socket}") as channel:
        try:
            answered = await channel.unary_unary(METHOD)(raw, metadata=pairs, timeout=20)
        except grpc.aio.AioRpcError as error:
            return error_of(error).reason
    return CheckResponse.FromString(answered)


async def allows(lab: PolicyLab, asked: Any = None, **metadata: str) -> bool:
    answered = await ask(lab, asked, **metadata)
    assert not isinstance(answered, str), answered
    return bool(answered.status.code == 0)


async def test_the_callers_own_policies_decide(lab: PolicyLab) -> None:
    assert await allows(lab)
    assert not await allows(lab, check(method="POST"))
    assert not await allows(lab, check(method="POST", headers={"x-burgee-target": U}))
    assert await ask(lab, check(method="POST"), x_burgee_target=U) == "TARGET_NOT_HELD"
    assert [r.target for r in lab.records] == [T, T, T]


async def test_of_several_identities_the_proxy_names_one(lab: PolicyLab) -> None:
    lab.snapshot(entry("t", "/t", WEB), entry("u", "/u", WEB))
    assert await ask(lab) == "TARGET_AMBIGUOUS"
    assert not await allows(lab, check(method="POST"), x_burgee_target=T)
    assert await allows(lab, check(method="POST"), x_burgee_target=U)


async def test_who_has_no_identity_is_answered_nothing(lab: PolicyLab) -> None:
    lab.selectors = frozenset({Selector("unix", "user:nobody")})
    assert await ask(lab) == "NO_IDENTITY"
    assert not lab.records


async def test_without_policies_nothing_is_allowed(lab: PolicyLab) -> None:
    lab.held.take(None)
    assert await ask(lab) == "POLICY_NOT_DELIVERED"


async def test_a_change_holds_for_the_next_question_of_the_same_connection(lab: PolicyLab) -> None:
    async with grpc.aio.insecure_channel(f"unix:{lab.policy_socket}") as channel:
        call = channel.unary_unary(METHOD)

        async def code() -> int:
            raw = await call(check().SerializeToString(), timeout=20)
            return int(CheckResponse.FromString(raw).status.code)

        assert await code() == 0
        await lab.enforce(policy("get", "DENY", GET), workload("t", T), revision=2)
        assert await code() == 7
        assert [r.revision for r in lab.records] == [1, 2]
        lab.snapshot()  # the identity is gone
        with pytest.raises(grpc.aio.AioRpcError):
            await code()


async def test_a_connection_is_attested_once_and_followed(lab: PolicyLab) -> None:
    async with grpc.aio.insecure_channel(f"unix:{lab.policy_socket}") as channel:
        call = channel.unary_unary(METHOD)
        raw = check().SerializeToString()
        await asyncio.gather(*(call(raw, timeout=20) for _ in range(50)))
        assert lab.attested == 1
        assert len(lab.askers) == 1
    await asyncio.sleep(0)


async def test_who_asks_no_more_is_forgotten(lab: PolicyLab) -> None:
    lab.askers._idle_seconds = 0.05
    assert await allows(lab)
    await eventually(lambda: len(lab.askers) == 0)
    assert await allows(lab)


async def test_an_id_is_the_proxys_where_it_says_one_and_else_ours(lab: PolicyLab) -> None:
    answered = await ask(lab, check(method="POST"), x_burgee_decision="p1-abc")
    assert json.loads(answered.denied_response.body)["decision"] == "p1-abc"
    for bad in ("", "x" * 200, "a b", "../../x"):
        answered = await ask(lab, check(method="POST", headers={"x-request-id": "mine"}), x_burgee_decision=bad)
        assert json.loads(answered.denied_response.body)["decision"].startswith("agent-")
    assert len({r.id for r in lab.records}) == 5


async def test_what_is_no_check_is_refused(lab: PolicyLab) -> None:
    assert await ask(lab, b"\xff\xff") == "CHECK_MALFORMED"
    assert await ask(lab, x_burgee_remote_ip="nowhere") == "CHECK_MALFORMED"
    huge = check(headers={f"x-{n}": "y" * 10_000 for n in range(60)})
    assert isinstance(await ask(lab, huge), str)  # larger than any request of the agent's socket
    assert not await allows(lab, CheckRequest())


async def test_a_jwt_svid_of_the_bundle_needs_no_authentication(lab: PolicyLab) -> None:
    claim = {"when": [{"key": "request.auth.claims[sub]", "values": ["spiffe://example.org/web"]}]}
    await lab.enforce(policy("svid", "ALLOW", claim), workload("t", T), revision=2)
    claims = {"sub": "spiffe://example.org/web", "aud": [T], "exp": int(time.time()) + 60}
    good = lab.authority.token(claims)
    assert await allows(lab, check(headers={"authorization": f"Bearer {good}"}))
    for bad in (lab.foreign.token(claims), lab.authority.token({**claims, "aud": [U]}), good + "x"):
        assert not await allows(lab, check(headers={"authorization": f"Bearer {bad}"}))
    assert lab.records[0].headers["authorization"] == "***"


CUSTOM = policy("ask", "CUSTOM", GET, provider={"name": "opa"})


async def test_a_custom_policy_needs_its_provider_to_agree(lab: PolicyLab) -> None:
    everything = (policy("get", "ALLOW", GET), CUSTOM, workload("t", T))
    await lab.enforce(*everything, revision=2)
    assert not await allows(lab)  # the mesh has no such provider
    assert lab.records[-1].reason == "NO_PROVIDER"
    await lab.enforce(*everything, revision=3, providers=["opa"])
    assert not await allows(lab)
    assert lab.records[-1].reason == "PROVIDER_UNAVAILABLE"  # the agent has not
    says = True
    socket = Path(lab.directory) / "opa.sock"
    opa = Authz(socket, lambda _: says)
    lab.providers["opa"] = found = Provider("opa", ProviderConfig(address=f"unix:{socket}", timeout_seconds=20))
    try:
        assert await allows(lab)
        says = False
        assert not await allows(lab)
        assert lab.records[-1].reason == "PROVIDER_REFUSED"
        assert lab.records[-1].policy == "a/get"
        assert not await allows(lab, check(method="POST"))
        assert len(opa.checks) == 2  # who is refused anyway is not asked about
    finally:
        opa.stop()
        await found.close()


async def test_a_provider_that_is_late_has_not_agreed(tmp_path: Path) -> None:
    late = Authz(tmp_path / "late.sock", lambda _: time.sleep(1) or True)  # type: ignore[func-returns-value]
    found = Provider("late", ProviderConfig(address=f"unix:{tmp_path}/late.sock", timeout_seconds=0.05))
    nobody = Provider("nobody", ProviderConfig(address=f"unix:{tmp_path}/nobody.sock"))
    try:
        for one in (found, nobody):
            with pytest.raises(Unavailable):
                await one.agrees(b"")
    finally:
        late.stop()
        await found.close()
        await nobody.close()


@pytest.mark.parametrize("address", ["10.0.0.1:1", "opa.example.org:1", "unix:relative", "127.0.0.1", "[::2]:1"])
def test_a_provider_is_on_this_machine(address: str) -> None:
    with pytest.raises(ConfigError):
        from_values({"providers": {"opa": {"address": address}}}, PolicyConfig)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "unix:/run/opa.sock"])
def test_a_provider_near_by_is_taken(address: str) -> None:
    assert from_values({"providers": {"opa": {"address": address}}}, PolicyConfig).providers["opa"].address == address
