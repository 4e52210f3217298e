"""The sets of policies that an agent takes in: which is in force, what of it is used again, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ca.errors import InvalidArgument
from ca.identity.selector import Selector
from sds import policy_held
from sds.feed import ResumeToken, Snapshot
from sds.policy_held import HeldPolicies, digest
from sds.policy_read import Policies, read
from sds.state import open_store
from tests.sds.fake_server import FakeServer
from tests.sds.lab import eventually
from tests.sds.node_lab import config_for
from tests.sds.test_state import AGENT, FEED
from tests.support.policy_node import allowing, authorization, policy_set, workload

A = "spiffe://example.org/a"
ONE = policy_set(1, workload("a", "/a"), allowing("p"))
TWO = policy_set(2, workload("a", "/a"), allowing("p"), allowing("q"))
BAD = policy_set(3, workload("a", "/a"), authorization("p", action="NONSENSE"))


@pytest.fixture
async def held() -> AsyncIterator[HeldPolicies]:
    made = HeldPolicies()
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()


async def test_what_cannot_be_used_leaves_the_one_before_in_force(held: HeldPolicies) -> None:
    told: list[tuple[int, str]] = []
    held.on_verdict.append(lambda: told.append((held.revision, held.problem)))
    assert (held.told, held.payload, held.came) == (False, None, "")
    held.take(ONE)
    await eventually(lambda: held.revision == 1)
    held.take(BAD)
    await eventually(lambda: bool(held.problem))
    assert "there is no action `NONSENSE`" in held.problem
    assert (held.revision, held.payload, held.came) == (1, ONE, digest(BAD))
    for broken in (b"\xff", policy_set(9)[:5], b""):
        before = len(told)
        held.take(broken)
        await eventually(lambda n=before: len(told) > n)  # type: ignore[misc]
        assert held.revision == 1
    held.take(TWO)
    await eventually(lambda: held.revision == 2)
    assert held.problem == ""
    assert told[0] == (1, "")
    assert told[-1] == (2, "")


async def test_a_set_without_objects_is_read_when_somebody_asks(
    held: HeldPolicies, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    real = policy_held._read
    monkeypatch.setattr(policy_held, "_read", lambda payload, old: read.append(payload) or real(payload, old))
    empty = policy_set(7)
    held.take(empty)
    held.take(policy_set(8))
    await asyncio.sleep(0.05)
    assert (held.revision, held.detail, held.told, held.payload, read) == (8, "", True, policy_set(8), [])
    assert held.in_force is None
    assert await held.asked() is held.in_force is not None
    assert (held.revision, read) == (8, [policy_set(8)])
    held.take(empty)
    await eventually(lambda: held.revision == 7)
    held.forget()
    assert (held.revision, held.payload) == (0, None)


async def test_what_is_forgotten_while_it_is_read_does_not_come_back(
    held: HeldPolicies, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def to_thread(function: Callable[..., Any], *arguments: Any) -> Any:
        reading.set()
        await go_on.wait()
        return function(*arguments)

    monkeypatch.setattr(policy_held.asyncio, "to_thread", to_thread)
    held.take(ONE)
    await reading.wait()
    held.forget()
    go_on.set()
    await asyncio.sleep(0.05)
    assert (held.revision, held.payload, held.told) == (0, None, True)


async def test_of_sets_that_come_faster_than_they_are_read_the_last_holds(held: HeldPolicies) -> None:
    for number in range(1, 30):
        held.take(policy_set(number, allowing(f"p{number}")))
        await asyncio.sleep(0)
    await eventually(lambda: held.revision == 29)
    held.take(ONE)
    held.take(None)
    await asyncio.sleep(0.1)
    assert (held.revision, held.taken_away, held.payload) == (0, True, b"")


def test_what_did_not_change_is_the_same_object_in_the_next_set() -> None:
    first = read(ONE)
    second = read(TWO, first)
    selectors = [Selector("unix", "uid:0")]
    (p,) = first.matched(A, selectors).policies
    assert second.matched(A, selectors).policies[0] is p
    assert second.mesh is first.mesh
    assert second.snapshot(second.matched(A, selectors)) is not first.snapshot(first.matched(A, selectors))
    third = read(policy_set(3, workload("a", "/a"), allowing("p"), allowing("x", "other")), first)
    assert third.snapshot(third.matched(A, selectors)) is first.snapshot(first.matched(A, selectors))


def test_a_strict_workload_refuses_plain_text_before_anything_else() -> None:
    peers = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "s", "namespace": "root"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    found = read(policy_set(1, workload("a", "/a"), allowing("p"), peers))
    assert [policy.id for policy in found.matched(A, ()).policies] == ["root/s", "a/p"]
    again = read(policy_set(2, workload("a", "/a"), allowing("p"), peers), found)
    assert again.matched(A, ()).policies[0] is found.matched(A, ()).policies[0]


async def test_whom_only_the_next_set_knows_nobody_may_call_before_it_is_read(held: HeldPolicies) -> None:
    """A policy of the root namespace allows, one of the newcomer's own denies: the old set has the first alone."""
    new = "spiffe://example.org/new"
    root = authorization("all", rules=[{}])
    root["metadata"]["namespace"] = "root"
    first = policy_set(1, root)
    held.take(first)
    await eventually(lambda: held.payload == first)
    before = held.in_force
    assert before is not None
    assert not before.matched(new, ()).unknown
    held.take(
        policy_set(2, root, workload("new", "/new"), authorization("no", action="DENY", rules=[{}])), frozenset({new})
    )
    assert "being read" in before.matched(new, ()).unknown
    assert not before.snapshot(before.matched(new, ())).judges(new)
    assert not before.matched(new, {Selector("k8s", "ns:a")}).unknown
    assert not before.matched(A, ()).unknown
    await eventually(lambda: held.in_force is not before)
    after = held.in_force
    assert after is not None
    assert {policy.id for policy in after.matched(new, ()).policies} == {"a/no", "root/all"}
    held.take(held.payload, frozenset({"spiffe://example.org/other"}))
    assert not after.newcomers


async def test_newcomers_wait_for_the_set_that_came_with_them(held: HeldPolicies) -> None:
    held.take(ONE)
    await eventually(lambda: held.payload == ONE)
    held.take(BAD, frozenset({"spiffe://example.org/new"}))
    await eventually(lambda: bool(held.problem))
    in_force = held.in_force
    assert in_force is not None
    assert "being read" in in_force.matched("spiffe://example.org/new", ()).unknown


def test_nobody_may_call_whom_two_places_are_told_of() -> None:
    elsewhere = workload("b", "/a")
    elsewhere["metadata"]["namespace"] = "b"
    found = read(policy_set(1, workload("a", "/a"), elsewhere, allowing("p")))
    matched = found.matched(A, ())
    assert "several Workload objects" in matched.unknown
    assert not found.snapshot(matched).judges(A)
    attested = found.matched(A, {Selector("k8s", "ns:a")})
    assert (attested.unknown, attested.target.namespace) == ("", "a")


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "no trust domain is named"),
        (b"\xff\xff", "DecodeError"),
        (BAD, "there is no action"),
    ],
)
def test_why_a_set_cannot_be_used(payload: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        read(payload)
    assert refused.value.reason == "POLICY_SET_UNREADABLE"


def test_policies_are_sealed_and_a_token_is_not_used_for_others_than_came_last(tmp_path: Path) -> None:
    store = open_store(config_for(tmp_path, FakeServer(), servers=["s:1"]))
    store.save_feed(AGENT, FEED)
    assert store.load_feed(AGENT) == FEED
    store.save_policies(AGENT, ONE)
    store.save_feed(AGENT, FEED, digest(ONE))
    loaded = store.load_feed(AGENT)
    assert loaded is not None
    assert (loaded.token, loaded.policies, loaded.entries) == (FEED.token, ONE, FEED.entries)
    assert not any(ONE[:40] in path.read_bytes() for path in (tmp_path / "cache").iterdir())
    store.save_feed(AGENT, FEED, digest(BAD))
    loaded = store.load_feed(AGENT)
    assert loaded is not None
    assert (loaded.token, loaded.policies, loaded.entries) == (ResumeToken(), ONE, FEED.entries)
    (tmp_path / "cache" / "policies.sealed").unlink(missing_ok=True)
    store.save_policies(AGENT, b"")
    store.save_feed(AGENT, FEED)
    loaded = store.load_feed(AGENT)
    assert loaded is not None
    assert (loaded.token, loaded.policies) == (FEED.token, b"")
    store.erase()
    assert store.load_feed(AGENT) is None


def test_policies_are_not_kept_where_nothing_is_to_be(tmp_path: Path) -> None:
    store = open_store(config_for(tmp_path, FakeServer(), servers=["s:1"], cache={"persist": "none"}))
    store.save_policies(AGENT, ONE)
    store.save_feed(AGENT, Snapshot(token=ResumeToken("e", 1)), digest(ONE))
    assert store.load_feed(AGENT) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and ONE[:40] in path.read_bytes()]


def test_policies_of_a_set_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(ONE)
    calls: list[str] = []
    import sds.policy_read as module

    real = module.parse_object
    monkeypatch.setattr(
        module, "parse_object", lambda value, source, **more: calls.append(source) or real(value, source, **more)
    )
    assert isinstance(read(TWO, first), Policies)
    assert calls == ["AuthorizationPolicy a/q"]
