"""Who can be called, as far as a server knows; and invariants, which hold for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ca.errors import InvalidArgument
from ca.service.policy.refusals import Conflict, InvariantBroken
from ca.service.policy.targets import all_targets, made_by
from policy import invariants
from policy.book_values import Change
from policy.described import described
from policy.invariants import Violation
from policy.model import Request, Target
from policy.snapshot import Snapshot
from tests.ca.policy.lab import ADMIN, Lab, allow, body, key, lab, put, url_in, workload
from tests.support.server import eventually
from tests.support.stores import entry

WEB = "spiffe://example.org/web"


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(url_in(tmp_path)) as one:
        yield one


class TestDescribed:
    def test_a_pod_is_where_its_selectors_say(self) -> None:
        given = [Target(spiffe_id=WEB, namespace="elsewhere", labels=(("app", "other"),), normalized=True)]
        pairs = [("k8s", "ns:shop"), ("k8s", "pod-label:app:a:b"), ("k8s", "pod-label:empty:"), ("unix", "ns:bank")]
        found = described(WEB, pairs, given)
        assert (found.namespace, found.labels) == ("shop", (("app", "a:b"), ("empty", "")))
        assert found.normalized

    def test_others_are_where_workload_objects_say(self) -> None:
        given = [
            Target(spiffe_id="spiffe://example.org/other", namespace="bank"),
            Target(spiffe_id=WEB, namespace="shop", labels=(("a", "1"),), normalized=True, waypoint=True),
            Target(spiffe_id=WEB, namespace="shop", references=(("Service", "web"),)),
        ]
        found = described(WEB, [("unix", "uid:7"), ("k8s", "pod-label:a:2")], given)
        assert (found.namespace, found.labels) == ("shop", (("a", "1"),))
        assert (found.waypoint, found.normalized, found.references) == (True, False, (("Service", "web"),))

    def test_of_nothing(self) -> None:
        assert described(WEB, [], []) == Target(spiffe_id=WEB)


def test_targets_are_those_of_entries_and_of_workload_objects_alone() -> None:
    entries = [entry("/web", "k8s:ns:shop", "k8s:pod-label:app:web"), entry("/web", "k8s:ns:shop"), entry("/vm")]
    given = (
        Target(spiffe_id="spiffe://example.org/vm", namespace="vms"),
        Target(spiffe_id="spiffe://example.org/cloud", namespace="clouds"),
    )
    found = all_targets(made_by(entries), given)
    assert {(target.spiffe_id.rpartition("/")[2], target.namespace, target.labels) for target in found} == {
        ("web", "shop", (("app", "web"),)),
        ("web", "shop", ()),
        ("vm", "vms", ()),
        ("cloud", "clouds", ()),
    }


async def test_one_id_has_one_place(made: Lab) -> None:
    """Else the first would win, here by namespace and at an agent by name: a DENY of the other's would be nowhere."""
    await made.write(put(workload("b", WEB, "bank", app="web")))
    for second in (workload("a", WEB, "shop", app="web"), workload("a", WEB, "bank", app="other")):
        for dry_run in (True, False):
            with pytest.raises(Conflict, match="than a second Workload"):
                await made.write(put(second), dry_run=dry_run)
    await made.write(put(workload("a", WEB, "bank", app="web")))
    away = [Change(key=key(name, "bank", "Workload"), body=None) for name in ("a", "b")]
    await made.write(*away, put(workload("a", WEB, "shop")), put(workload("b", WEB, "shop")))
    assert made.book.state.snapshot.targets[WEB][0].namespace == "shop"


def test_what_an_older_book_says_twice_must_be_allowed_by_each_place() -> None:
    given = (Target(spiffe_id=WEB, namespace="bank"), Target(spiffe_id=WEB, namespace="shop"))
    assert set(all_targets(made_by([entry("/web")]), given)) == set(given)
    assert [t.namespace for t in all_targets(made_by([entry("/web", "k8s:ns:shop")]), given)] == ["shop"]


async def test_entries_that_come_are_targets_soon(made: Lab) -> None:
    running = asyncio.ensure_future(made.book.held.run_entries())
    try:
        await made.write(put(allow("one")))
        await made.store.entries.create([entry("/web", "k8s:ns:shop")])
        await made.follower.catch_up()
        asked = Request(principal="example.org/a", method="GET")

        async def allowed() -> bool:
            await made.clock.advance(10)
            return made.book.state.snapshot.decide(WEB, asked).allowed

        await eventually(allowed)
        assert made.book.state.revision == 1
    finally:
        running.cancel()


def never(who: str) -> str:
    said = f"spiffe://example.org/{who} -> {WEB}"
    return f"{{apiVersion: burgee.io/v1, kind: Invariant, metadata: {{name: i}}, spec: {{never: '{said}'}}}}"


class TestInvariants:
    async def test_a_write_that_breaks_one_is_refused_with_who_is_to_blame(self, made: Lab) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)))
        etag = await made.book.set_invariants(never("b"), actor="x", rights=ADMIN)
        assert (await made.book.get_invariants(rights=ADMIN))[1] == etag
        with pytest.raises(InvariantBroken) as caught:
            await made.write(put(allow("two", "b")))
        (violation,) = caught.value.violations
        assert violation.policy == "shop/two"
        with pytest.raises(InvariantBroken):
            await made.write(put(allow("two", "b")), dry_run=True)
        assert made.book.state.revision == 1
        await made.write(put(allow("two", "c")))
        await made.write(put(body("no", action="DENY", rules=[{}])), put(allow("three", "b")))

    async def test_what_was_found_to_hold_is_not_asked_again(self, made: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Snapshot | None] = []

        def check(*some: Any, previous: Snapshot | None) -> tuple[Violation, ...]:
            asked.append(previous)
            return original(*some, previous=previous)

        original = invariants.check
        monkeypatch.setattr(invariants, "check", check)
        await made.write(put(allow("one")), put(workload("web", WEB)))
        await made.book.set_invariants(never("b"), actor="x", rights=ADMIN)
        held = made.book.state.snapshot
        await made.write(put(allow("else", "b", "other")))
        assert asked == [None, held]
        held = made.book.state.snapshot
        for _ in range(2):  # what was refused is no more known to hold than before
            with pytest.raises(InvariantBroken):
                await made.write(put(allow("two", "b")))
        assert asked[2:] == [held, held]
        await made.book.set_invariants(never("z"), actor="x", rights=ADMIN)
        await made.write(put(allow("two", "b")))
        assert asked[4] is None

    async def test_invariants_that_do_not_hold_now_are_not_taken(self, made: Lab) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)))
        with pytest.raises(InvariantBroken):
            await made.book.set_invariants(never("a"), actor="x", rights=ADMIN)
        assert (await made.book.get_invariants(rights=ADMIN))[0] == ""

    async def test_what_is_no_invariant(self, made: Lab) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await made.book.set_invariants("kind: Nothing", actor="x", rights=ADMIN)
        assert caught.value.reason == "INVARIANTS_INVALID"

    async def test_over_a_restart(self, tmp_path: Path) -> None:
        async with lab(url_in(tmp_path)) as made:
            await made.book.set_invariants(never("b"), actor="x", rights=ADMIN)
        async with lab(url_in(tmp_path)) as made:
            with pytest.raises(InvariantBroken):
                await made.write(put(allow("two", "b")), put(workload("web", WEB)))
