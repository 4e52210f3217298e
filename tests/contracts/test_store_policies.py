"""The book of policies, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ca.errors import AlreadyExists, NotFound
from ca.store.audit import AuditFilter, AuditRecord
from ca.store.policies import Answer, Moved, Step
from ca.store.policy_rows import with_etag
from ca.store.store import Store
from policy.book_values import Grant, Key, Revision, Role, Stored, etag_of
from tests.support.stores import BOTH, HOUR, NOW, opened, url_of

RECORD = AuditRecord(at=NOW, server="s", actor="uid:0", origin="", call="policy write", code="OK")


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as made:
        yield made


def stored(name: str, revision: int, value: Any = 1, owner: str = "") -> Stored:
    key = Key(kind="AuthorizationPolicy", namespace="shop", name=name)
    body = {"kind": key.kind, "metadata": {"name": name}, "spec": {"value": value}}
    return Stored(key=key, body=body, etag=etag_of(body), revision=revision, owner=owner)


async def write(
    store: Store, number: int, *steps: tuple[Stored | None, Stored | None], answer: Answer | None = None
) -> None:
    await store.policies.write(
        [Step(before=before, after=after) for before, after in steps],
        Revision(number=number, at=NOW, actor="uid:0", note=f"note {number}"),
        invariants="",
        record=RECORD,
        answer=answer,
    )


async def test_what_is_written_is_there_with_its_revision_its_change_and_its_record(store: Store) -> None:
    one, two = stored("one", 1, "\u00fc\x00\U0001f600", "ci"), stored("two", 1)
    await write(store, 1, (None, two), (None, one))
    book = await store.policies.load()
    assert (book.number, list(book.objects.values())) == (1, [one, two])
    (change,) = await store.changes.since(0)
    assert (change.kind, change.name) == ("policy", "1")
    assert [record.call for record in await store.audit.find(AuditFilter())] == ["policy write"]
    revision = await store.policy_revisions.get(1)
    assert (revision.note, revision.at, revision.count) == ("note 1", NOW, 2)
    assert [(c.before, c.after) for c in revision.changes] == [(None, one.body), (None, two.body)]


async def test_who_comes_second_writes_nothing(store: Store) -> None:
    await write(store, 1, (None, stored("one", 1)))
    with pytest.raises(Moved):
        await write(store, 1, (None, stored("two", 1)))
    with pytest.raises(Moved):
        await write(store, 3, (None, stored("two", 3)))
    assert (await store.policies.load()).number == 1
    assert len(await store.audit.find(AuditFilter())) == 1
    assert len(await store.changes.since(0)) == 1


async def test_of_many_at_once_one_writes(store: Store) -> None:
    writes = (write(store, 1, (None, stored(f"n{number}", 1))) for number in range(20))
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, Moved)] == [None]
    assert len((await store.policies.load()).objects) == 1


async def test_any_revision_that_is_kept_can_be_gone_back_to(store: Store) -> None:
    first, second = stored("one", 1), stored("one", 2, 2, "ci")
    await write(store, 1, (None, first), (None, stored("gone", 1)))
    await write(store, 2, (first, second))
    await write(store, 3, (second, None), (None, stored("new", 3)))
    last, undone = await store.policy_revisions.undo(1)
    assert (last, undone) == (3, {second.key: first, stored("new", 3).key: None})
    assert (await store.policy_revisions.undo(2))[1] == {second.key: second, stored("new", 3).key: None}
    assert (await store.policy_revisions.undo(3))[1] == {}
    assert set((await store.policy_revisions.undo(0))[1].values()) == {None}
    assert await store.policy_revisions.made(2) == (second,)
    for number in (-1, 4):
        with pytest.raises(NotFound):
            await store.policy_revisions.undo(number)


async def test_old_revisions_are_forgotten_and_the_last_never(store: Store) -> None:
    before = None
    for number in range(1, 6):
        after = stored("one", number, number)
        await write(store, number, (before, after))
        before = after
    assert await store.policy_revisions.count_beyond(2) == 3
    assert await store.policy_revisions.prune(2) == 3
    assert [revision.number for revision in await store.policy_revisions.list(None, 10)] == [5, 4]
    assert [revision.number for revision in await store.policy_revisions.list(5, 10)] == [4]
    assert (await store.policy_revisions.undo(3))[1] == {stored("one", 3).key: stored("one", 3, 3)}
    with pytest.raises(NotFound):
        await store.policy_revisions.undo(2)
    with pytest.raises(NotFound):
        await store.policy_revisions.get(3)
    assert await store.policy_revisions.prune(0) == 1
    assert (await store.policies.load()).number == 5


async def test_an_answer_is_remembered_with_its_write_or_not_at_all(store: Store) -> None:
    answer = Answer(digest=b"d" * 32, request_sha256=b"r" * 32, until=NOW + HOUR, number=1)
    with pytest.raises(Moved):
        await write(store, 7, (None, stored("one", 7)), answer=replace(answer, number=7))
    assert await store.policies.answered(answer.digest, NOW) is None
    await write(store, 1, (None, stored("one", 1)), answer=answer)
    assert await store.policies.answered(answer.digest, NOW) == answer
    with pytest.raises(AlreadyExists):
        await store.policies.remember(replace(answer, number=None), NOW)
    assert await store.policies.answered(answer.digest, NOW + HOUR) is None
    later = replace(answer, number=None, until=NOW + 3 * HOUR)
    await store.policies.remember(later, NOW + HOUR)
    assert await store.policies.answered(answer.digest, NOW + HOUR) == later


async def test_grants(store: Store) -> None:
    grant = with_etag(Grant(name="g", spiffe_id="spiffe://example.org/a", role=Role.AUTHOR, namespaces=("shop",)))
    await store.policies.put_grant(grant, before=None, record=RECORD)
    assert (await store.policies.load()).grants == {"g": grant}
    with pytest.raises(Moved):
        await store.policies.put_grant(grant, before=None, record=RECORD)
    other = with_etag(replace(grant, role=Role.READER))
    assert other.etag != grant.etag
    await store.policies.put_grant(other, before=grant, record=RECORD)
    with pytest.raises(Moved):
        await store.policies.delete_grant(grant, record=RECORD)
    await store.policies.delete_grant(other, record=RECORD)
    assert (await store.policies.load()).grants == {}
    assert [(change.kind, change.name) for change in await store.changes.since(0)] == [("policy", "grants")] * 3


async def test_a_grant_is_written_once_for_one_key_and_what_it_was_is_told_again(store: Store) -> None:
    grant = with_etag(Grant(name="g", spiffe_id="spiffe://example.org/a", role=Role.AUTHOR, namespaces=("shop",)))
    answer = Answer(digest=b"d" * 32, request_sha256=b"r" * 32, until=NOW + HOUR, told="as it was")
    await store.policies.put_grant(grant, before=None, record=RECORD, answer=answer)
    assert await store.policies.answered(answer.digest, NOW) == answer
    with pytest.raises(AlreadyExists):
        await store.policies.delete_grant(grant, record=RECORD, answer=answer)
    with pytest.raises(AlreadyExists):
        await store.policies.put_invariants("never", before="", number=0, at=NOW, record=RECORD, answer=answer)
    assert (await store.policies.load()).grants == {"g": grant}
    assert (await store.policies.load()).invariants == ""
    other = replace(answer, digest=b"e" * 32)
    with pytest.raises(Moved):
        await store.policies.put_grant(grant, before=None, record=RECORD, answer=other)
    assert await store.policies.answered(other.digest, NOW) is None
    later = replace(answer, until=NOW + 3 * HOUR, told="")
    await store.policies.remember(later, NOW + HOUR)
    assert await store.policies.answered(answer.digest, NOW + HOUR) == later


async def test_a_write_is_for_the_invariants_that_it_was_checked_against(store: Store) -> None:
    await store.policies.put_invariants("never", before="", number=0, at=NOW, record=RECORD)
    assert (await store.policies.load()).invariants == "never"
    with pytest.raises(Moved):
        await write(store, 1, (None, stored("one", 1)))
    for before, number in (("", 0), ("never", 1)):
        with pytest.raises(Moved):
            await store.policies.put_invariants("", before=before, number=number, at=NOW, record=RECORD)


async def test_key_sets_are_kept(store: Store) -> None:
    await store.policies.put_key_set("https://a/jwks", "{}", NOW)
    await store.policies.put_key_set("https://a/jwks", '{"keys": []}', NOW + timedelta(minutes=1))
    assert await store.policies.key_sets() == {"https://a/jwks": '{"keys": []}'}
    await store.policies.delete_key_set("https://a/jwks")
    assert await store.policies.key_sets() == {}
