"""What a proxy verified tokens by a moment ago, and who asks by rules that are no longer in force."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.extensions.filters.http.composite.v3.composite_pb2 import FilterChainConfiguration
from envoy.extensions.filters.http.set_metadata.v3.set_metadata_pb2 import Config as SetMetadata
from google.protobuf.wrappers_pb2 import BytesValue

from ca.runtime.clock import SystemClock
from policy.envoy_chain import CHAIN
from policy.envoy_verified import VERIFIED
from sds.policy_filters import POLICY, TOKENS
from sds.policy_given import LINGER_SECONDS, MAX_GIVEN, GivenTokens
from sds.policy_read import read
from tests.policy.test_ext_authz import check
from tests.sds.lab import Authority, entry, eventually
from tests.sds.policy_lab import PolicyLab
from tests.sds.test_authz import ask
from tests.sds.test_policy_one_step import revision
from tests.support.policy_node import policy_set
from tests.support.workload_client import DeltaCall, WorkloadClient

NAME = "burgee.http.policy+ask+jwt"
JWKS = '{"keys":[]}'


def written(number: int, name: str) -> bytes:
    """One of the two revisions that read tokens in different headers, and let different roles in."""
    return policy_set(number, *revision(name, asked=True), keys={"https://i": JWKS})


OLD, NEW = read(written(1, "a")), read(written(2, "b"))


def test_what_is_given_instead_of_another_is_known_for_a_while() -> None:
    given = GivenTokens()
    given.give("one", OLD, ())
    given.withdraw(100.0, ["another"])
    assert given.find("one", 1e9) is not None
    given.withdraw(100.0, ["one"])
    given.withdraw(110.0)  # which makes it no longer
    found = given.find("one", 99.0 + LINGER_SECONDS)
    assert found is not None
    assert found.policies is OLD
    assert given.find("one", 100.0 + LINGER_SECONDS) is None
    given.give("one", NEW, ())
    found = given.find("one", 1e9)
    assert found is not None
    assert found.policies is NEW


def test_what_nobody_can_ask_by_any_more_is_not_kept() -> None:
    given = GivenTokens()
    given.give("one", OLD, ())
    given.withdraw(0.0)
    given.withdraw(LINGER_SECONDS, [])
    assert not given._given
    for number in range(MAX_GIVEN + 1):
        given.give(str(number), OLD, ())
    assert len(given._given) == MAX_GIVEN
    given.clear()
    assert given.find("5", 0.0) is None


class Later(SystemClock):
    """The system's, and some seconds."""

    more = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.more


class Node(PolicyLab):
    """An agent, and a proxy of which the test says what it took over."""

    def __init__(self) -> None:
        self.later = Later()
        super().__init__(clock=self.later)

    async def given(self, call: DeltaCall) -> dict[str, Any]:
        """The chain that is sent next: filters by name."""
        answer = await call.read()
        await call.ack()
        typed = TypedExtensionConfig()
        assert answer.resources[0].resource.Unpack(typed)
        assert typed.typed_config.type_url == CHAIN
        # A message with one field of bytes, in which is one with a list of filters.
        chain = FilterChainConfiguration.FromString(BytesValue.FromString(typed.typed_config.value).value)
        return {one.name: one.typed_config for one in chain.typed_config}

    async def verified(self, call: DeltaCall) -> str:
        """What the chain leaves for who is asked."""
        first, *rest = (await self.given(call)).items()
        assert [name for name, _ in rest] == [TOKENS, POLICY]
        left = SetMetadata()
        assert first[1].Unpack(left)
        (one,) = left.metadata
        assert one.metadata_namespace == VERIFIED
        return str(dict(one.value)["by"])

    async def decided(self, by: str, role: str) -> tuple[bool, int | None, str]:
        """Whether a request is allowed whose token has this role and was verified by that; by which revision, and
        why."""
        asked = check()
        left = asked.attributes.metadata_context.filter_metadata
        left["envoy.filters.http.jwt_authn"]["payload"] = {"role": role}
        if by:
            left[VERIFIED]["by"] = by
        answered = await ask(self, asked, x_burgee_tokens="yes")
        assert not isinstance(answered, str), answered
        record = self.records[-1]
        return answered.status.code == 0, record.revision, record.reason


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as found:
        found.snapshot(entry("web"))
        yield found


async def take(node: Node, payload: bytes) -> None:
    node.held.take(payload)
    await eventually(lambda: node.held.payload == payload)


async def test_who_asks_is_answered_by_the_revision_that_verified_the_token(node: Node) -> None:
    await take(node, written(1, "a"))
    async with WorkloadClient(str(node.policy_socket)) as client:
        call = client.policies()
        await call.ask(NAME)
        old = await node.verified(call)
        assert await node.decided(old, "a") == (True, 1, "ALLOWED_BY_RULE")
        await take(node, written(2, "b"))
        new = await node.verified(call)
        assert old != new
        assert [await node.decided(old, role) for role in "ab"] == [
            (True, 1, "ALLOWED_BY_RULE"),
            (False, 1, "NOTHING_ALLOWS"),
        ]
        assert [await node.decided(new, role) for role in "ab"] == [
            (False, 2, "NOTHING_ALLOWS"),
            (True, 2, "ALLOWED_BY_RULE"),
        ]
        outdated = (False, 2, "TOKENS_OUTDATED")
        assert [await node.decided(by, "b") for by in ("", "x")] == [outdated, outdated]
        node.later.more += LINGER_SECONDS  # a proxy that did not take the new one over
        assert [await node.decided(old, role) for role in "ab"] == [outdated, outdated]
        assert await node.decided(new, "b") == (True, 2, "ALLOWED_BY_RULE")
        await take(node, written(3, "b"))
        assert await node.decided(new, "b") == (True, 3, "ALLOWED_BY_RULE")  # it verifies them by the same


async def test_what_another_key_of_the_trust_domain_verified_is_decided_by_that_for_a_while(node: Node) -> None:
    await take(node, written(1, "a"))
    async with WorkloadClient(str(node.policy_socket)) as client:
        call = client.policies()
        await call.ask(NAME)
        old = await node.verified(call)
        node.put(bundles=(Authority().bundle(),))
        new = await node.verified(call)
        assert old != new
        assert await node.decided(old, "a") == (True, 1, "ALLOWED_BY_RULE")
        assert await node.decided(new, "a") == (True, 1, "ALLOWED_BY_RULE")
        node.later.more += LINGER_SECONDS
        assert await node.decided(old, "a") == (False, 1, "TOKENS_OUTDATED")


async def test_a_proxy_that_was_away_when_a_key_was_taken_back_goes_by_it_no_longer_than_others(node: Node) -> None:
    await take(node, written(1, "a"))
    async with WorkloadClient(str(node.policy_socket)) as client:
        call = client.policies()
        await call.ask(NAME)
        old = await node.verified(call)
        call.call.cancel()
        await eventually(lambda: not len(node.clients))
        node.put(bundles=(Authority().bundle(),))
        assert await node.decided(old, "a") == (True, 1, "ALLOWED_BY_RULE")
        node.later.more += LINGER_SECONDS
        assert await node.decided(old, "a") == (False, 1, "TOKENS_OUTDATED")


async def test_what_an_agent_forgets_is_forgotten(node: Node) -> None:
    await take(node, written(1, "a"))
    async with WorkloadClient(str(node.policy_socket)) as client:
        call = client.policies()
        await call.ask(NAME)
        old = await node.verified(call)
        node.held.forget()
        await take(node, written(2, "b"))
        assert await node.decided(old, "a") == (False, 2, "TOKENS_OUTDATED")
