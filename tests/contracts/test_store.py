"""What the store promises of its nouns, held on SQLite and on a real PostgreSQL alike."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.errors import AlreadyExists, BurgeeError, Denied, FailedPrecondition, InvalidArgument, NotFound
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.store.store import Store
from ca.store.values import AgentFilter, EntryFilter, Match, SelectorMatch, TrustDomainMatch
from tests.support.stores import AGENT, BOTH, HOUR, NOW, TD, agent, entry, opened, selectors, url_of


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as made:
        yield made


async def create(store: Store, *new: RegistrationEntry) -> list[RegistrationEntry]:
    created = []
    for result in await store.entries.create(new):
        assert result.status is None
        assert result.entry is not None
        created.append(result.entry)
    return created


def paths(entries: object) -> list[str]:
    return [each.spiffe_id.path for each in entries]  # type: ignore[attr-defined]


class TestEntries:
    async def test_every_field_comes_back(self, store: Store) -> None:
        await store.bundles.set(TrustBundle(trust_domain=TrustDomain("fed.org")))
        full = entry(
            "/full",
            "unix:uid:1",
            "k8s:ü:" + "x" * 5000,
            id="my-own-id.1_x",
            x509_svid_ttl_seconds=2**31 - 1,
            jwt_svid_ttl_seconds=60,
            federates_with=(TD, TrustDomain("fed.org")),
            admin=True,
            downstream=True,
            expires_at=datetime(1960, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
            dns_names=("web.example.org", "WEB2.example.org", "*.wild.example.org"),
            revision_number=77,
            store_svid=True,
            hint="ü" * 512,
            created_at=NOW - HOUR,
            disable_x509_svid_prefetch=True,
            jwt_svid_include_jti=True,
        )
        (created,) = await create(store, full)
        assert created == replace(full, revision_number=0, created_at=NOW)
        assert await store.entries.get("my-own-id.1_x") == created
        assert await store.entries.get("nope") is None
        assert (await store.snapshot()).entries == (created,)

    async def test_the_longest_ids_can_be_indexed(self, store: Store) -> None:
        def longest(start: str) -> SpiffeId:
            letters = random.Random(start).choices(string.ascii_letters, k=2048)  # no database compresses them
            return SpiffeId(TD, f"{start}{''.join(letters)}"[: 2048 - len(str(TD.id))])

        named = entry("/x", id="i" * 255, spiffe_id=longest("/w/"), parent_id=longest("/spire/agent/a/"))
        await create(store, named)
        assert await store.entries.count(EntryFilter(by_spiffe_id=named.spiffe_id, by_parent_id=named.parent_id)) == 1
        await store.agents.upsert(agent(id=named.parent_id))
        assert await store.agents.get(named.parent_id) is not None

    async def test_a_similar_entry_is_returned_instead(self, store: Store) -> None:
        (first,) = await create(store, entry("/e/1", "t:v", "t:w"))
        again = await store.entries.create(
            [entry("/e/1", "t:w", "t:v", x509_svid_ttl_seconds=60), entry("/e/1", "t:v"), entry("/e/2"), entry("/e/2")]
        )
        elsewhere = replace(entry("/e/1", "t:v", "t:w"), parent_id=SpiffeId(TD, "/spire/agent/other"))
        assert (await store.entries.create([elsewhere]))[0].status is None  # another parent
        assert isinstance(again[0].status, AlreadyExists)
        assert again[0].status.reason == "ENTRY_SIMILAR"
        assert again[0].entry == first
        assert again[1].status is None  # other selectors
        assert again[2].status is None
        assert isinstance(again[3].status, AlreadyExists)  # within the call too
        assert again[3].entry == again[2].entry

    async def test_each_item_of_a_batch_has_its_own_result(self, store: Store) -> None:
        results = await store.entries.create(
            [
                entry("/a", id="one"),
                entry("/b", id="one"),
                entry("/c", federates_with=(TrustDomain("unknown.org"),)),
                entry("/d", "t:with\x00nul"),
                entry("/e", federates_with=(TD,)),
            ]
        )
        reasons = [None if r.status is None else r.status.reason for r in results]
        assert reasons == [None, "ENTRY_ID_IN_USE", "FEDERATED_BUNDLE_UNKNOWN", "TEXT_NUL", None]
        assert paths(await store.entries.all()) == ["/a", "/e"]

    async def test_update_merges_and_counts(self, store: Store) -> None:
        (made,) = await create(store, entry("/a", "t:v", "t:w"))
        first = await store.entries.update(made.id, {"hint": "h", "revision_number": 99, "id": "other"})
        assert first == replace(made, hint="h", revision_number=1)
        second = await store.entries.update(made.id, {})
        assert second.revision_number == 2
        third = await store.entries.update(made.id, {"selectors": selectors("n:1"), "spiffe_id": SpiffeId(TD, "/b")})
        assert await store.entries.get(made.id) == third
        found = await store.entries.find(EntryFilter(by_selectors=SelectorMatch(selectors("n:1"))))
        assert list(found.items) == [third]
        assert await store.entries.count(EntryFilter(by_selectors=SelectorMatch(selectors("t:v"), Match.ANY))) == 0
        assert (await store.entries.create([entry("/b", "n:1")]))[0].entry == third  # similarity follows the update

    async def test_update_refuses_and_changes_nothing(self, store: Store) -> None:
        (made,) = await create(store, entry("/a"))

        def refuse(merged: RegistrationEntry) -> None:
            assert merged.hint == "h"
            raise InvalidArgument("no", reason="CHECK")

        with pytest.raises(InvalidArgument, match="no"):
            await store.entries.update(made.id, {"hint": "h"}, check=refuse)
        with pytest.raises(FailedPrecondition, match=r"unknown\.org"):
            await store.entries.update(made.id, {"federates_with": (TrustDomain("unknown.org"),)})
        with pytest.raises(InvalidArgument, match="no such field"):
            await store.entries.update(made.id, {"colour": "red"})
        with pytest.raises(NotFound):
            await store.entries.update("nope", {"hint": "h"})
        assert await store.entries.get(made.id) == made
        assert await store.changes.revision() == 1

    async def test_delete_tells_what_was_there(self, store: Store) -> None:
        made = await create(store, entry("/a"), entry("/b"))
        assert await store.entries.delete([made[0].id, "nope", "", made[0].id]) == [True, False, False, False]
        assert await store.entries.all() == [made[1]]
        again = await create(store, entry("/a"))  # nothing of it is left to be similar to
        assert again[0].id != made[0].id

    @pytest.mark.parametrize(
        ("match", "expected"),
        [
            (Match.EXACT, ["/full"]),
            (Match.SUBSET, ["/plain", "/full"]),
            (Match.SUPERSET, ["/full", "/more"]),
            (Match.ANY, ["/plain", "/full", "/more"]),
        ],
    )
    async def test_set_filters(self, store: Store, match: Match, expected: list[str]) -> None:
        f, g, h = (TrustDomain(f"{name}.org") for name in "fgh")
        for td in (f, g, h):
            await store.bundles.set(TrustBundle(trust_domain=td))
        await create(
            store,
            entry("/plain", "unix:uid:1000", federates_with=(f,)),
            entry("/full", "unix:uid:1000", "unix:gid:7", federates_with=(g, f)),
            entry("/more", "unix:uid:1000", "unix:gid:7", "unix:gid:8", federates_with=(f, g, h)),
            entry("/other", "unix:uid:1", federates_with=(h,)),
            entry("/none", "unix:uid:2"),
        )
        by_selectors = SelectorMatch(selectors("unix:gid:7", "unix:uid:1000"), match)
        assert paths((await store.entries.find(EntryFilter(by_selectors=by_selectors))).items) == expected
        by_td = EntryFilter(by_federates_with=TrustDomainMatch(frozenset({f, g}), match))
        assert paths((await store.entries.find(by_td)).items) == expected
        assert await store.entries.count(replace(by_td, by_selectors=by_selectors)) == len(expected)

    async def test_plain_filters(self, store: Store) -> None:
        other = SpiffeId(TD, "/other")
        await create(store, entry("/a", hint="x"), entry("/a", "s:1", downstream=True), entry("/b", parent_id=other))

        async def found(**conditions: object) -> list[str]:
            condition = EntryFilter(**conditions)  # type: ignore[arg-type]
            items = paths((await store.entries.find(condition)).items)
            assert await store.entries.count(condition) == len(items)
            return items

        assert await found(by_spiffe_id=SpiffeId(TD, "/a")) == ["/a", "/a"]
        assert await found(by_parent_id=other) == ["/b"]
        assert await found(by_hint="x") == ["/a"]
        assert await found(by_hint="", by_downstream=False) == ["/a", "/a", "/b"]
        assert await found(by_downstream=True, by_hint="x") == []
        with pytest.raises(InvalidArgument, match="empty set"):
            await found(by_selectors=SelectorMatch(frozenset()))

    async def test_pages_neither_repeat_nor_skip(self, store: Store) -> None:
        made = await create(store, *(entry(f"/e/{n}") for n in range(7)))
        first = await store.entries.find(page_size=3)
        assert paths(first.items) == ["/e/0", "/e/1", "/e/2"]
        await store.entries.delete([made[0].id, made[2].id, made[4].id])  # the row of the token among them
        await create(store, entry("/e/new"))
        second = await store.entries.find(page_size=3, page_token=first.next_token)
        assert paths(second.items) == ["/e/3", "/e/5", "/e/6"]
        third = await store.entries.find(page_size=3, page_token=second.next_token)
        assert paths(third.items) == ["/e/new"]
        assert third.next_token == ""

    async def test_page_bounds(self, store: Store) -> None:
        await create(store, *(entry(f"/e/{n}") for n in range(4)))
        assert (await store.entries.find(page_size=4)).next_token == ""
        everything = await store.entries.find(page_size=0, page_token="garbage")  # SPIRE ignores the token then
        assert len(everything.items) == 4
        for token in ("garbage", "MQ", "cDE6LTE", "€", "cDE6" + "OTk5" * 20):
            with pytest.raises(InvalidArgument, match="page token"):
                await store.entries.find(page_size=2, page_token=token)


class TestAgents:
    async def test_every_field_comes_back(self, store: Store) -> None:
        full = agent(
            serial=str(2**159),
            pending_serial=str(2**159 - 1),
            pending_not_after=NOW + 2 * HOUR,
            selectors=selectors("a:1", "b:2"),
            reattestable=True,
            agent_version="1.2.3",
        )
        await store.agents.upsert(full)
        assert await store.agents.get(full.id) == full
        again = replace(full, selectors=selectors("c:3"), pending_serial="", pending_not_after=None)
        await store.agents.upsert(again)
        assert await store.agents.all() == [again]
        assert (await store.snapshot()).agents == (again,)

    async def test_a_renewed_serial_waits_for_its_first_use(self, store: Store) -> None:
        await store.agents.upsert(agent())
        pending = await store.agents.set_pending(AGENT, "2002", NOW + 2 * HOUR)
        assert (pending.serial, pending.pending_serial) == ("1001", "2002")
        assert await store.agents.promote(AGENT, serial="3003") == pending  # another renewal came in between
        used = await store.agents.promote(AGENT, serial="2002")
        assert used == agent(serial="2002", not_after=NOW + 2 * HOUR)
        assert await store.agents.promote(AGENT) == used

    async def test_a_ban_holds_until_the_agent_is_deleted(self, store: Store) -> None:
        await store.agents.upsert(agent())
        await store.agents.set_pending(AGENT, "2", NOW)
        banned = await store.agents.ban(AGENT)
        assert banned == agent(serial="", banned=True)
        assert await store.agents.ban(AGENT) == banned
        for attempt in (store.agents.upsert(agent()), store.agents.set_pending(AGENT, "3", NOW)):
            with pytest.raises(Denied) as refusal:
                await attempt
            assert refusal.value.reason == "AGENT_BANNED"
        assert await store.agents.promote(AGENT) == banned
        await store.agents.delete(AGENT)
        await store.agents.upsert(agent())
        assert await store.agents.get(AGENT) == agent()

    async def test_an_unknown_agent_is_not_found(self, store: Store) -> None:
        agents = store.agents
        for attempt in (
            agents.set_pending(AGENT, "1", NOW),
            agents.promote(AGENT),
            agents.ban(AGENT),
            agents.set_version(AGENT, "1"),
            agents.delete(AGENT),
        ):
            with pytest.raises(NotFound):
                await attempt

    async def test_filters(self, store: Store) -> None:
        for new in (
            agent("a", selectors=selectors("x:1")),
            agent("b", selectors=selectors("x:1", "x:2"), reattestable=True),
            agent("c", attestation_type="x509pop", not_after=NOW + 3 * HOUR),
        ):
            await store.agents.upsert(new)
        await store.agents.ban(agent("a").id)
        await store.agents.upsert(agent("b", selectors=selectors("x:1", "x:2"), reattestable=True))  # keeps its place

        async def found(**conditions: object) -> str:
            condition = AgentFilter(**conditions)  # type: ignore[arg-type]
            items = (await store.agents.find(condition)).items
            assert await store.agents.count(condition) == len(items)
            return "".join(each.id.path[-1] for each in items)

        assert await found() == "abc"
        assert await found(by_attestation_type="x509pop") == "c"
        assert await found(by_banned=True) == "a"
        assert await found(by_banned=False, by_can_reattest=False) == "c"
        assert await found(by_can_reattest=True) == "b"
        assert await found(by_expires_before=NOW + 3 * HOUR) == "ab"
        assert await found(by_selector_match=SelectorMatch(selectors("x:1"))) == "a"
        assert await found(by_selector_match=SelectorMatch(selectors("x:1"), Match.SUPERSET)) == "ab"
        first = await store.agents.find(page_size=2)
        assert len((await store.agents.find(page_size=2, page_token=first.next_token)).items) == 1


class TestTokens:
    async def test_fifty_callers_one_wins(self, store: Store) -> None:
        await store.tokens.create("t1", NOW + HOUR)
        outcomes = await asyncio.gather(*(store.tokens.consume("t1", NOW) for _ in range(50)), return_exceptions=True)
        lost = [o for o in outcomes if isinstance(o, BurgeeError)]
        assert len(lost) == 49
        assert {error.reason for error in lost} == {"JOIN_TOKEN_UNKNOWN"}
        (won,) = (o for o in outcomes if not isinstance(o, BaseException))
        assert (won.value, won.expires_at, won.agent_id) == ("t1", NOW + HOUR, None)

    async def test_an_expired_token_says_so_each_time_until_it_is_forgotten(self, store: Store) -> None:
        await store.tokens.create("t1", NOW, SpiffeId(TD, "/alias"))
        late = NOW + timedelta(microseconds=1)
        week = timedelta(days=7)
        for when, key in ((late, None), (late, b"k" * 32), (NOW + HOUR, b"k" * 32), (NOW + week, None)):
            with pytest.raises(Denied) as refusal:
                await store.tokens.consume("t1", when, key_sha256=key)
            assert refusal.value.reason == "JOIN_TOKEN_EXPIRED"
        assert await store.tokens.prune(NOW + week) == 0
        assert await store.tokens.prune(late + week) == 1
        with pytest.raises(Denied) as refusal:
            await store.tokens.consume("t1", late)
        assert refusal.value.reason == "JOIN_TOKEN_UNKNOWN"

    async def test_a_token_is_made_once_and_pruned(self, store: Store) -> None:
        await store.tokens.create("bad token/with%chars", NOW)
        with pytest.raises(AlreadyExists):
            await store.tokens.create("bad token/with%chars", NOW + HOUR)
        await store.tokens.create("later", NOW + HOUR)
        assert await store.tokens.prune(NOW + timedelta(days=7)) == 0
        assert await store.tokens.prune(NOW + timedelta(days=7, seconds=1)) == 1
        await store.tokens.consume("later", NOW)

    async def test_the_value_of_an_expired_token_may_be_made_again(self, store: Store) -> None:
        await store.tokens.create("t1", NOW - timedelta(seconds=1))
        await store.tokens.create("t1", NOW + HOUR)
        assert (await store.tokens.consume("t1", NOW)).expires_at == NOW + HOUR

    async def test_a_used_token_serves_its_key_again_for_a_while_and_nobody_else(self, store: Store) -> None:
        own, other = b"k" * 32, b"o" * 32
        await store.tokens.create("t1", NOW + timedelta(seconds=1), SpiffeId(TD, "/alias"))
        first = await store.tokens.consume("t1", NOW, key_sha256=own)
        for later in (timedelta(), timedelta(minutes=5)):  # though it has expired meanwhile
            again = await store.tokens.consume("t1", NOW + later, key_sha256=own)
            assert (again.value, again.agent_id) == (first.value, first.agent_id)
        for key, later in ((other, timedelta()), (None, timedelta()), (own, timedelta(minutes=5, seconds=1))):
            with pytest.raises(Denied) as refusal:
                await store.tokens.consume("t1", NOW + later, key_sha256=key)
            assert refusal.value.reason == "JOIN_TOKEN_UNKNOWN"
        assert await store.tokens.prune(NOW + timedelta(minutes=5)) == 0
        assert await store.tokens.prune(NOW + timedelta(minutes=5, seconds=1)) == 1
        await store.tokens.create("t1", NOW + HOUR)
        await store.tokens.consume("t1", NOW, key_sha256=other)
        await store.tokens.create("t1", NOW + HOUR)  # a value that was used may be made again
        await store.tokens.consume("t1", NOW, key_sha256=own)

    async def test_an_evicted_agents_token_serves_no_more(self, store: Store) -> None:
        await store.tokens.create("a1", NOW + HOUR)
        await store.tokens.consume("a1", NOW, key_sha256=b"k" * 32)
        await store.agents.upsert(agent())
        await store.agents.delete(AGENT)
        with pytest.raises(Denied):
            await store.tokens.consume("a1", NOW, key_sha256=b"k" * 32)

    async def test_the_alias_comes_with_the_token_and_goes_with_the_agent(self, store: Store) -> None:
        alias = SpiffeId(TD, "/my-node")
        await store.tokens.create("a1", NOW + HOUR, alias)
        (made,) = await store.entries.all()
        assert (made.spiffe_id, made.parent_id) == (alias, AGENT)
        assert made.selectors == selectors(f"spiffe_id:{AGENT}")
        assert (await store.tokens.consume("a1", NOW)).agent_id == alias
        await store.agents.upsert(agent())
        (kept,) = await create(store, entry("/w"))
        await store.agents.delete(AGENT)
        assert await store.entries.all() == [kept]
        with pytest.raises(InvalidArgument):
            await store.tokens.create("no path segment", NOW + HOUR, alias)
        with pytest.raises(Denied):  # refused whole: the token was not made either
            await store.tokens.consume("no path segment", NOW)


class TestBundles:
    async def test_the_sequence_number_follows_the_contents(self, store: Store) -> None:
        first = TrustBundle(
            trust_domain=TD,
            x509_authorities=(X509Authority(certificate=b"\x00\xff"), X509Authority(certificate=b"2", tainted=True)),
            jwt_authorities=(
                JwtAuthority(key_id="k", public_key=b"\x01", expires_at=NOW),
                JwtAuthority(key_id="l", public_key=b""),
            ),
            refresh_hint_seconds=300,
        )
        assert await store.bundles.get(TD) is None
        stored = await store.bundles.set(first)
        assert stored == replace(first, sequence_number=1)
        assert await store.bundles.set(first) == stored
        assert await store.bundles.get(TD) == stored
        assert (await store.bundles.set(replace(first, refresh_hint_seconds=1))).sequence_number == 2
        assert (await store.bundles.set(replace(first, sequence_number=40))).sequence_number == 40
        assert [c.kind for c in await store.changes.since(0)] == ["bundle"] * 3

    async def test_concurrent_updates_are_all_kept(self, store: Store) -> None:
        def adding(number: int) -> object:
            authority = X509Authority(certificate=bytes((number,)))
            return store.bundles.update(
                TD, lambda old: replace(old, x509_authorities=(*old.x509_authorities, authority))
            )

        await asyncio.gather(*(adding(number) for number in range(20)))  # type: ignore[call-overload]
        held = await store.bundles.get(TD)
        assert held is not None
        assert held.sequence_number == 20
        assert {a.certificate for a in held.x509_authorities} == {bytes((n,)) for n in range(20)}

    async def test_a_bundle_in_use_stays(self, store: Store) -> None:
        other = TrustDomain("fed.org")
        await store.bundles.set(TrustBundle(trust_domain=other))
        (made,) = await create(store, entry("/a", federates_with=(other,)))
        with pytest.raises(FailedPrecondition):
            await store.bundles.delete(other)
        await store.entries.delete([made.id])
        assert await store.bundles.delete(other)
        assert not await store.bundles.delete(other)
        assert await store.bundles.all() == []
        with pytest.raises(InvalidArgument):
            await store.bundles.update(other, lambda _: TrustBundle(trust_domain=TD))
