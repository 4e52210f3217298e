"""The book of policies: one write is one revision or nothing, whoever writes at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ca.errors import AlreadyExists, BurgeeError, Exhausted, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from ca.service.policy.refusals import Conflict, PolicyInvalid
from ca.store.audit import AuditFilter
from policy.book_values import Change, Grant, Role
from policy.decision import Reason
from policy.model import Request
from tests.ca.policy.lab import ADMIN, Lab, allow, body, gone, key, lab, put, url_in, workload
from tests.support.server import eventually

WEB = "spiffe://example.org/web"
GRANT = Grant(name="g", spiffe_id="spiffe://example.org/a", role=Role.READER, namespaces=("shop",))


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(url_in(tmp_path)) as one:
        yield one


def decided(made: Lab, principal: str = "a") -> bool:
    return made.book.state.snapshot.decide(WEB, Request(principal=f"example.org/{principal}", method="GET")).allowed


class TestWrite:
    async def test_one_write_is_one_revision_and_in_force_when_it_is_answered(self, made: Lab) -> None:
        outcome = await made.write(put(allow("one")), put(workload("web", WEB)), note="first")
        assert (outcome.revision.number, outcome.revision.note, outcome.revision.count) == (1, "first", 2)
        assert {stored.revision for stored in outcome.objects} == {1}
        assert decided(made)
        assert not decided(made, "b")
        outcome = await made.write(put(allow("two", "b")))
        assert outcome.revision.number == 2
        assert decided(made, "b")
        assert (await made.book.get(key("one"))).revision == 1
        with pytest.raises(NotFound):
            await made.book.get(key("three"))

    async def test_what_did_not_change_is_read_and_compiled_once(self, made: Lab) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)))
        before = made.book.state
        await made.write(put(allow("two", namespace="other")))
        after = made.book.state
        assert after.parsed.policies[1] is before.parsed.policies[0]
        assert after.snapshot.judges(WEB)[0] is before.snapshot.judges(WEB)[0]

    async def test_a_write_that_changes_nothing_makes_no_revision(self, made: Lab) -> None:
        await made.write(put(allow("one")))
        outcome = await made.write(put(allow("one")))
        assert outcome.revision is None
        assert outcome.objects == (await made.book.get(key("one")),)
        assert made.book.state.revision == 1

    async def test_all_or_nothing(self, made: Lab) -> None:
        with pytest.raises(PolicyInvalid) as caught:
            await made.write(put(allow("one")), put(body("two", action="MAYBE")), put(body("three", rules=[None])))
        assert {problem.code for problem in caught.value.problems} == {"P101", "P109"}
        assert all(problem.pointer for problem in caught.value.problems)
        assert made.book.state.objects == {}
        assert await made.book.revisions(None, 10) == []

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (put(allow("one"), must_be_new=True), "POLICY_EXISTS"),
            (put(allow("one", "b"), if_match="0" * 32), "POLICY_CHANGED"),
            (put(allow("none"), if_match="0" * 32), "POLICY_CHANGED"),
            (gone("one", if_match="0" * 32), "POLICY_CHANGED"),
            (gone("none"), "POLICY_NOT_FOUND"),
            (Change(key=key("other"), body=allow("one")), "POLICY_INVALID"),
            (Change(key=key("one", "other"), body=allow("one")), "POLICY_INVALID"),
            (Change(key=key("one", kind="PeerAuthentication"), body=allow("one")), "POLICY_INVALID"),
            (Change(key=key("one", kind="Secret"), body=None), "POLICY_INVALID"),
            (put({**allow("two"), "more": "\ud800"}), "POLICY_INVALID"),
            (put(body("two", rules=[{"when": [{"key": "source.ip", "values": [float("nan")]}]}])), "POLICY_INVALID"),
        ],
    )
    async def test_what_is_refused_changes_nothing(self, made: Lab, change: Change, reason: str) -> None:
        await made.write(put(allow("one")))
        with pytest.raises(BurgeeError) as caught:
            await made.write(change, put(allow("more")))
        assert caught.value.reason == reason
        assert (made.book.state.revision, list(made.book.state.objects)) == (1, [key("one")])

    async def test_twice_in_one_write(self, made: Lab) -> None:
        with pytest.raises(PolicyInvalid):
            await made.write(put(allow("one")), put(allow("one", "b")))

    async def test_an_etag_is_that_of_the_content(self, made: Lab) -> None:
        first = (await made.write(put(allow("one")))).objects[0]
        second = (await made.write(put(allow("one", "b"), if_match=first.etag))).objects[0]
        assert second.etag != first.etag
        assert (await made.write(put(allow("one")))).objects[0].etag == first.etag

    async def test_hostile_objects(self, made: Lab) -> None:
        deep: dict[str, Any] = {}
        for _ in range(5_000):
            deep = {"a": deep}
        for spec in (deep, {"rules": [{"to": [{"operation": {"paths": ["x" * (2 << 20)]}}]}]}, {"selector": []}):
            with pytest.raises(PolicyInvalid):
                await made.write(put(body("one", **spec)))

    async def test_limits(self, tmp_path: Path) -> None:
        limits = {"max_objects": 2, "max_rules": 3, "max_object_bytes": 1024, "max_bytes": 1500}
        async with lab(url_in(tmp_path), policy={"limits": limits}) as made:
            await made.write(put(allow("one")), put(allow("two")))
            with pytest.raises(PolicyInvalid, match="3 objects, and at most 2"):
                await made.write(put(allow("three")))
            rule = allow("two")["spec"]["rules"][0]
            await made.write(put(body("two", rules=[rule] * 2)))
            with pytest.raises(PolicyInvalid, match="4 rules, and at most 3"):
                await made.write(put(body("two", rules=[rule] * 3)))
            with pytest.raises(PolicyInvalid, match="bytes, and at most"):
                await made.write(put(allow("two", "p" * 1024)))
            await made.write(put(allow("two", "p" * 700)))
            with pytest.raises(PolicyInvalid, match="bytes of policies, and at most 1,500"):
                await made.write(put(allow("one", "p" * 700)))

    async def test_a_caller_who_writes_too_fast(self, tmp_path: Path) -> None:
        limits = {"writes_per_second_per_caller": 1, "burst_seconds": 3}
        async with lab(url_in(tmp_path), policy={"limits": limits}) as made:
            rights = replace(ADMIN, exempt=False)
            for _ in range(3):
                await made.write(put(allow("one")), rights=rights, actor="spiffe://example.org/x")
            with pytest.raises(Exhausted) as caught:
                await made.write(put(allow("one")), rights=rights, actor="spiffe://example.org/x")
            assert caught.value.retry_after_seconds
            await made.write(put(allow("one")), rights=rights, actor="spiffe://example.org/y")
            await made.clock.advance(2)
            await made.write(put(allow("one")), rights=rights, actor="spiffe://example.org/x")


class TestOwners:
    async def test_an_object_is_its_owners(self, made: Lab) -> None:
        await made.write(put(allow("one"), owner="ci"))
        for change in (put(allow("one", "b"), owner="other"), put(allow("one", "b")), gone("one", owner="other")):
            with pytest.raises(Conflict) as caught:
                await made.write(change)
            assert caught.value.reason == "POLICY_OWNED"
        await made.write(put(allow("one", "b"), owner="ci"))
        taken = await made.write(put(allow("one", "b"), owner="other", force=True))
        assert taken.objects[0].owner == "other"
        assert taken.revision.number == 3

    async def test_what_was_written_by_hand_can_be_taken_over(self, made: Lab) -> None:
        await made.write(put(allow("one")))
        assert (await made.write(put(allow("one"), owner="ci"))).objects[0].owner == "ci"


class TestTwoWriters:
    async def test_of_two_with_the_same_etag_one_comes_through(self, made: Lab) -> None:
        etag = (await made.write(put(allow("one")))).objects[0].etag
        writes = (made.write(put(allow("one", f"p{number}"), if_match=etag)) for number in range(5))
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert sum(isinstance(outcome, FailedPrecondition) for outcome in outcomes) == 4
        assert made.book.state.revision == 2

    async def test_many_at_once_are_as_many_revisions(self, made: Lab) -> None:
        await asyncio.gather(*(made.write(put(allow(f"n{number}"))) for number in range(20)))
        assert made.book.state.revision == 20
        assert len(made.book.state.objects) == 20

    async def test_two_servers_on_one_store(self, tmp_path: Path) -> None:
        """As two replicas on PostgreSQL are: each finds out in its transaction that the other one wrote."""
        async with lab(url_in(tmp_path)) as one:
            other = await _beside(one)
            await asyncio.gather(
                *(one.write(put(allow(f"a{n}"))) for n in range(10)),
                *(other.write(put(allow(f"b{n}"))) for n in range(10)),
            )
            await one.book.held.catch_up(20)
            await other.book.held.catch_up(20)
            assert one.book.state.revision == other.book.state.revision == 20
            assert list(one.book.state.objects)
            assert one.book.state.objects == other.book.state.objects

    async def test_what_another_server_writes_comes_into_force_here(self, made: Lab) -> None:
        other = await _beside(made)
        running = asyncio.ensure_future(made.book.held.run())
        try:
            await other.write(put(allow("one")), put(workload("web", WEB)))
            await other.book.write_grant(GRANT, actor="uid:0", rights=ADMIN)
            await made.follower.catch_up()
            assert await asyncio.wait_for(made.book.wait_changed(0), 5) == 1
            await eventually(lambda: "g" in made.book.held.grants)
            assert decided(made)
            await other.book.delete_grant("g", actor="uid:0", rights=ADMIN)
            assert "g" in made.book.held.grants  # until the change has been read here
            await made.follower.catch_up()
            await eventually(lambda: "g" not in made.book.held.grants)
        finally:
            running.cancel()

    async def test_a_store_that_is_away_for_a_while_does_not_end_the_following(
        self, made: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = await _beside(made)
        running = asyncio.ensure_future(made.book.held.run())

        async def fail() -> None:
            raise Unavailable("away")

        try:
            await other.write(put(allow("one")))
            with monkeypatch.context() as patched:
                patched.setattr(made.store.policies, "load", fail)
                await made.follower.catch_up()
                await asyncio.sleep(0.1)
            await made.clock.advance(2)
            assert await asyncio.wait_for(made.book.wait_changed(0), 5) == 1
        finally:
            running.cancel()

    async def test_the_revision_that_is_expected(self, made: Lab) -> None:
        await made.write(put(allow("one")), expected_revision=0)
        with pytest.raises(FailedPrecondition) as caught:
            await made.write(put(allow("two")), expected_revision=0)
        assert caught.value.reason == "POLICY_CHANGED"


class TestAgain:
    async def test_a_write_that_is_sent_again_is_made_once(self, made: Lab) -> None:
        first = await made.write(put(allow("one")), idempotency_key="k")
        await made.write(gone("one"))
        again = await made.write(put(allow("one")), idempotency_key="k")
        assert (again.revision.number, again.objects) == (1, first.objects)
        assert made.book.state.revision == 2
        with pytest.raises(InvalidArgument) as caught:
            await made.write(put(allow("two")), idempotency_key="k")
        assert caught.value.reason == "IDEMPOTENCY_KEY"
        await made.write(put(allow("two")), idempotency_key="k", actor="somebody else")
        await made.clock.advance(25 * 3600)
        assert (await made.write(put(allow("one")), idempotency_key="k")).revision.number == 4

    async def test_at_the_same_time(self, made: Lab) -> None:
        writes = (made.write(put(allow("one")), idempotency_key="k", must_be_new=True) for _ in range(0))
        outcomes = await asyncio.gather(
            *(made.write(put(allow("one"), must_be_new=True), idempotency_key="k") for _ in range(8)), *writes
        )
        assert {outcome.revision.number for outcome in outcomes} == {1}

    async def test_also_where_nothing_changed(self, made: Lab) -> None:
        await made.write(put(allow("one")))
        for _ in range(2):
            assert (await made.write(put(allow("one")), idempotency_key="k")).revision is None


class TestRevisions:
    async def test_a_rollback_is_a_new_revision_with_the_old_content(self, made: Lab) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)), put(allow("gone"), owner="ci"))
        await made.write(put(allow("one", "b")), gone("gone", owner="ci"), put(allow("new", "c")))
        assert not decided(made)
        outcome = await made.book.rollback(1, actor="uid:0", rights=ADMIN)
        assert (outcome.revision.number, outcome.revision.note) == (3, "rollback to revision 1")
        assert decided(made)
        assert set(made.book.state.objects) == {key("one"), key("gone"), key("web", kind="Workload")}
        assert (await made.book.get(key("gone"))).owner == "ci"
        assert (await made.book.rollback(3, actor="uid:0", rights=ADMIN)).revision is None
        assert (await made.book.rollback(0, actor="uid:0", rights=ADMIN)).revision.number == 4
        assert made.book.state.objects == {}
        with pytest.raises(NotFound):
            await made.book.rollback(9, actor="uid:0", rights=ADMIN)

    async def test_a_rollback_that_is_sent_again(self, made: Lab) -> None:
        await made.write(put(allow("one")))
        await made.write(put(allow("two")))
        for _ in range(2):
            outcome = await made.book.rollback(1, actor="uid:0", rights=ADMIN, idempotency_key="k")
            assert outcome.revision is not None
            assert outcome.revision.number == 3
        assert made.book.state.revision == 3

    async def test_any_revision_can_be_asked(self, made: Lab) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)))
        await made.write(put(allow("one", "b")))
        then = await made.book.state_at(1)
        assert then.snapshot.decide(WEB, Request(principal="example.org/a", method="GET")).allowed
        assert (await made.book.state_at(0)).snapshot.decide(WEB, Request()).reason is Reason.UNKNOWN_TARGET
        assert (await made.book.state_at(2)) is made.book.state
        assert [revision.number for revision in await made.book.revisions(None, 10)] == [2, 1]
        (changed,) = (await made.book.revision(2)).changes
        assert (changed.before, changed.after) == (allow("one"), allow("one", "b"))

    async def test_each_write_is_on_record_with_its_revision_and_what_it_changed(self, made: Lab) -> None:
        await made.write(put(allow("one")), actor="spiffe://example.org/x", origin="10.0.0.1:7")
        await made.write(put(allow("one", "b")))
        await made.write(gone("one"))
        first, second, third = await made.store.audit.find(AuditFilter())
        assert (first.actor, first.origin, first.call, first.code) == (
            "spiffe://example.org/x",
            "10.0.0.1:7",
            "policy write",
            "OK",
        )
        (item,) = first.items
        what, *lines = item.about.splitlines()
        assert (item.name, what) == ("AuthorizationPolicy shop/one", "revision 1: created")
        assert '+        "example.org/a"' in lines
        assert all(line.startswith("+") for line in lines)
        what, *lines = third.items[0].about.splitlines()
        assert (what, '-        "example.org/b"' in lines) == ("revision 3: deleted", True)
        assert '-        "example.org/a"\n+        "example.org/b"' in second.items[0].about

    async def test_a_dry_run_changes_nothing(self, made: Lab) -> None:
        outcome = await made.write(put(allow("one")), dry_run=True)
        assert outcome.revision is None
        assert outcome.objects[0].body == allow("one")
        assert made.book.state.objects == {}
        assert await made.store.audit.find(AuditFilter()) == []

    async def test_a_dry_run_tells_what_lint_finds_and_what_would_be_decided_otherwise(self, made: Lab) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)))
        lost = body("lost", selector={"matchLabels": {"app": "none"}}, action="DENY", rules=[{}])
        outcome = await made.write(put(lost), put(allow("two", "b")), dry_run=True)
        assert {finding.key for finding in outcome.findings} == {"shop/lost"}  # which is for nobody
        (change,) = outcome.difference.document()["changes"]
        assert "example.org/b" in str(change)
        assert (await made.write(put(allow("again")), dry_run=True)).difference.empty

    async def test_warnings_are_told(self, made: Lab) -> None:
        outcome = await made.write(put(body("one", selector={"matchLabels": {}})))
        assert [warning.code for warning in outcome.warnings] == ["W001"]


class TestStore:
    async def test_a_restart(self, tmp_path: Path) -> None:
        async with lab(url_in(tmp_path)) as made:
            await made.write(put(allow("one")), put(workload("web", WEB)))
            before = dict(made.book.state.objects)
        async with lab(url_in(tmp_path)) as made:
            assert made.book.state.objects == before
            assert decided(made)

    async def test_a_crash_between_the_commit_and_its_news(self, made: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever called is gone, and what was written comes into force by the change log."""
        swap = made.book.held.swap

        def cancelled(*_: object) -> None:
            raise asyncio.CancelledError

        monkeypatch.setattr(made.book.held, "swap", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await made.write(put(allow("one")))
        monkeypatch.setattr(made.book.held, "swap", swap)
        assert made.book.state.revision == 0
        await made.follower.catch_up()
        await made.book.held.follow()
        assert list(made.book.state.objects) == [key("one")]
        assert (await made.write(put(allow("two")))).revision.number == 2

    async def test_a_store_that_is_away_leaves_what_is_in_force(
        self, made: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)))

        async def fail(*_: object, **__: object) -> None:
            raise Unavailable("away")

        with monkeypatch.context() as patched:
            patched.setattr(made.store.policies, "write", fail)
            with pytest.raises(Unavailable):
                await made.write(gone("one"))
        assert decided(made)
        assert made.book.state.revision == 1
        await made.write(gone("one"))
        assert not decided(made)

    async def test_what_cannot_be_read_leaves_what_is_in_force_and_is_told(
        self, made: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await made.write(put(allow("one")), put(workload("web", WEB)))
        other = await _beside(made)
        await other.write(put(allow("two", "b")))

        from ca.service.policy import held
        from policy.model import Origin
        from policy.problems import Problem, Refused

        def refuse(*_: object) -> None:
            raise Refused([Problem("P006", "a field that is not known", Origin("x"))])

        with monkeypatch.context() as patched:
            patched.setattr(held, "book_state", refuse)
            with pytest.raises(Unavailable):
                await made.book.state_at(1 + 1)
            with pytest.raises(Unavailable):
                await made.write(put(allow("three")))
        assert made.book.state.revision == 1
        problem = made.book.held.problem()
        assert problem is not None
        assert problem.reason == "POLICY_UNREADABLE"
        await made.book.held.catch_up(2)
        assert made.book.held.problem() is None
        assert decided(made, "b")


class TestLists:
    async def test_pages(self, made: Lab) -> None:
        await made.write(*(put(allow(f"n{n}", namespace=ns)) for n in range(3) for ns in ("a", "b")))
        found, after = [], ""
        while True:
            page = await made.book.list("AuthorizationPolicy", None, after, 4)
            found += [f"{stored.key.namespace}/{stored.key.name}" for stored in page.items]
            if not (after := page.next_token):
                break
        assert found == ["a/n0", "a/n1", "a/n2", "b/n0", "b/n1", "b/n2"]
        only = await made.book.list("AuthorizationPolicy", "b", "", 100)
        assert [stored.key.namespace for stored in only.items] == ["b"] * 3
        mine = await made.book.list("AuthorizationPolicy", None, "", 100, readable=lambda ns: ns == "a")
        assert {stored.key.namespace for stored in mine.items} == {"a"}
        assert (await made.book.list("Workload", None, "", 100)).items == ()

    async def test_who_waits_for_a_revision_is_told_of_it(self, made: Lab) -> None:
        waiting = asyncio.ensure_future(made.book.wait_changed(0))
        await asyncio.sleep(0)
        assert not waiting.done()
        await made.write(put(allow("one")))
        assert await asyncio.wait_for(waiting, 5) == 1


async def _beside(made: Lab) -> Lab:
    """Another server's book, on the same store."""
    from ca.runtime.config import from_values
    from ca.runtime.server_config import ServerConfig
    from ca.service.policy.made import policy_book

    other = Lab(made.store, made.follower, made.index, made.clock)
    config = from_values({"trust_domain": "example.org", "data_dir": "/nowhere"}, ServerConfig)
    other.book = await policy_book(config, store=made.store, index=made.index, clock=made.clock, server="s2")
    return other


async def test_grants_that_exist(made: Lab) -> None:
    await made.book.write_grant(GRANT, actor="uid:0", rights=ADMIN)
    with pytest.raises(AlreadyExists):
        await made.book.write_grant(GRANT, actor="uid:0", rights=ADMIN, must_be_new=True)
