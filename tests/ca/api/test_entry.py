"""Entries: SPIRE's rules for create, read, update, delete, list, and what agents may see of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from ca.api.convert.filters import MAX_MEMBERS
from ca.proto.spire import server_entry_pb2 as pb
from ca.proto.spire import types_pb2
from ca.runtime.item_status import split_message
from tests.ca.api.refusals import Code, refused
from tests.support.server import RunningServer, entry, spiffe_id

PARENT = "/spire/agent/join_token/x"
Mask = types_pb2.EntryMask
STATUS_OK, INVALID, NOT_FOUND, EXISTS, PRECONDITION = 0, 3, 5, 6, 9


async def create(server: RunningServer, *entries: types_pb2.Entry, **fields: Any) -> Sequence[Any]:
    request = pb.BatchCreateEntryRequest(entries=entries, **fields)
    return list((await server.local.entries.BatchCreateEntry(request)).results)


async def update(server: RunningServer, *entries: types_pb2.Entry, **fields: Any) -> Sequence[Any]:
    request = pb.BatchUpdateEntryRequest(entries=entries, **fields)
    return list((await server.local.entries.BatchUpdateEntry(request)).results)


async def listed(server: RunningServer, **fields: Any) -> tuple[list[str], str]:
    request = pb.ListEntriesRequest(output_mask=Mask(spiffe_id=True), **fields)
    answer = await server.local.entries.ListEntries(request)
    return [e.spiffe_id.path for e in answer.entries], answer.next_page_token


class TestCreate:
    async def test_comes_back_as_stored(self, server: RunningServer) -> None:
        full = entry(
            "/w/full",
            PARENT,
            "unix:uid:1000",
            "unix:gid:7",
            x509_svid_ttl=1200,
            jwt_svid_ttl=60,
            expires_at=4102444800,
            dns_names=["web.example.org", "WEB2.example.org", "*.wild.example.org"],
            hint="internal",
            admin=True,
            downstream=True,
            revision_number=77,
            created_at=5,
            additional_attributes=types_pb2.Entry.AdditionalAttributes(jwt_svid_include_jti=True),
        )
        (made,) = await server.create(full)
        assert made.id
        assert made.revision_number == 0
        assert abs(made.created_at - time.time()) < 60
        assert [s.value for s in made.selectors] == ["gid:7", "uid:1000"]
        assert list(made.dns_names) == ["*.wild.example.org", "WEB2.example.org", "web.example.org"]
        expected = types_pb2.Entry()
        expected.CopyFrom(full)
        for field in ("id", "created_at", "revision_number", "selectors", "dns_names"):
            expected.ClearField(field)  # type: ignore[arg-type]
            made.ClearField(field)
        assert made == expected

    async def test_similar_entries(self, server: RunningServer) -> None:
        (made,) = await server.create(entry("/e/1", PARENT, "t:v"))
        again, other = await create(
            server, entry("/e/1", PARENT, "t:v", x509_svid_ttl=60), entry("/e/1", PARENT, "t:v2")
        )
        assert (again.status.code, again.entry) == (EXISTS, made)
        assert again.status.message == "similar entry already exists (ENTRY_SIMILAR)"
        assert other.status.code == STATUS_OK

    async def test_masks(self, server: RunningServer) -> None:
        (one,) = await create(server, entry("/m/1", PARENT), output_mask=Mask(spiffe_id=True))
        assert one.entry == types_pb2.Entry(id=one.entry.id, spiffe_id=spiffe_id("/m/1"))
        (two,) = await create(server, entry("/m/2", PARENT), output_mask=Mask())
        assert two.entry == types_pb2.Entry(id=two.entry.id)

    async def test_own_ids(self, server: RunningServer) -> None:
        longest = "x" * 255
        results = await create(
            server,
            entry("/i/1", PARENT, id="my-own-id.1_x"),
            entry("/i/2", PARENT, id="my-own-id.1_x"),
            entry("/i/3", PARENT, id="bad id!"),
            entry("/i/4", PARENT, id=longest + "x"),
            entry("/i/5", PARENT, id=longest),
        )
        assert [r.status.code for r in results] == [STATUS_OK, EXISTS, INVALID, INVALID, STATUS_OK]
        assert results[0].entry.id == "my-own-id.1_x"

    @pytest.mark.parametrize(
        ("bad", "code", "part"),
        [
            (
                types_pb2.Entry(spiffe_id=spiffe_id("/e"), parent_id=spiffe_id(PARENT)),
                INVALID,
                "selector list is empty",
            ),
            (entry("/e", PARENT, ":v"), INVALID, "missing selector type"),
            (entry("/e", PARENT, "t:"), INVALID, "missing selector value"),
            (entry("/e", PARENT, "t:v", "t:v"), EXISTS, "given twice"),
            (types_pb2.Entry(parent_id=spiffe_id(PARENT)), INVALID, "request must specify SPIFFE ID"),
            (types_pb2.Entry(spiffe_id=spiffe_id("/e")), INVALID, "invalid parent ID: request must specify SPIFFE ID"),
            (entry("", PARENT), INVALID, "path is empty"),
            (entry("/spire/server", PARENT), INVALID, "reserved namespace"),
            (entry("/spire/agent/foo", PARENT), INVALID, "reserved namespace"),
            (entry("/spire/xyz", PARENT), INVALID, "reserved namespace"),
            (entry("/e", ""), INVALID, "invalid parent ID"),
            (entry("e/1", PARENT), INVALID, "leading slash"),
            (entry("/e//1", PARENT), INVALID, "empty segments"),
            (entry("/e/", PARENT), INVALID, "trailing slash"),
            (entry("/e/../1", PARENT), INVALID, "dot segments"),
            (entry("/e/%41", PARENT), INVALID, "path segment characters"),
            (entry("/e 1", PARENT), INVALID, "path segment characters"),
            (entry("/" + "x" * 2048, PARENT), INVALID, "longer than 2048"),
            (entry("/e", PARENT, x509_svid_ttl=-1), INVALID, "x509_svid_ttl"),
            (entry("/e", PARENT, jwt_svid_ttl=-1), INVALID, "jwt_svid_ttl"),
            (entry("/e", PARENT, dns_names=[""]), INVALID, "DNS name"),
            (entry("/e", PARENT, dns_names=["abc-"]), INVALID, "DNS name"),
            (entry("/e", PARENT, dns_names=["a..b"]), INVALID, "DNS name"),
            (entry("/e", PARENT, dns_names=["x.*.y"]), INVALID, "DNS name"),
            (entry("/e", PARENT, dns_names=["bücher.example"]), INVALID, "DNS name"),
            (entry("/e", PARENT, dns_names=["d.example", "d.example"]), EXISTS, "given twice"),
            (entry("/e", PARENT, federates_with=["unknown.org"]), PRECONDITION, "unable to find federated bundle"),
            (entry("/e", PARENT, federates_with=["Bad TD"]), INVALID, "invalid federated trust domain"),
            (entry("/e", PARENT, hint="x" * 1025), INVALID, "hint is too long"),
            (entry("/e", PARENT, "a:1", "b:2", store_svid=True), INVALID, "selector types must be the same"),
            (entry("/e", PARENT, expires_at=2**62), INVALID, "out of range"),
        ],
    )
    async def test_refused(self, server: RunningServer, bad: types_pb2.Entry, code: int, part: str) -> None:
        (result,) = await create(server, bad)
        assert result.status.code == code, result.status
        assert part in result.status.message
        assert split_message(result.status.message)[1] not in ("", "INVALID_ARGUMENT"), "a reason of its own"
        assert not result.HasField("entry")

    async def test_refused_ids(self, server: RunningServer) -> None:
        ids = [spiffe_id("/e", name) for name in ("foreign.org", "Example.org", "", "x y")]
        entries = [entry("/e", PARENT) for _ in ids]
        for one, bad in zip(entries, ids, strict=True):
            one.spiffe_id.CopyFrom(bad)
        results = await create(server, *entries, entry("/e", "/x", "t:v"))
        assert [r.status.code for r in results] == [INVALID] * 4 + [STATUS_OK]
        foreign = entry("/e2", PARENT)
        foreign.parent_id.trust_domain = "foreign.org"
        uri = entry("/e3", PARENT)
        uri.spiffe_id.trust_domain = "spiffe://example.org"
        colon = entry("/e4", PARENT)
        colon.selectors[0].type = "a:b"
        results = await create(server, foreign, uri, colon)
        assert [r.status.code for r in results] == [INVALID, STATUS_OK, INVALID]
        assert results[1].entry.spiffe_id == spiffe_id("/e3")

    async def test_accepted(self, server: RunningServer) -> None:
        results = await create(
            server,
            entry("/a/1", "/spire/server"),
            entry("/a/2", "/spire/xyz"),
            entry("/a/3", "/a/1"),
            entry("/a/4", PARENT, x509_svid_ttl=2**31 - 1),
            entry("/a/5", PARENT, expires_at=1000),
            entry("/a/6", PARENT, expires_at=-5),
            entry("/a/7", PARENT, dns_names=["under_score.example"]),
            entry("/a/8", PARENT, dns_names=["*.x.example", "a.x.example", "*.example"]),
            entry("/a/9", PARENT, federates_with=["example.org"]),
            entry("/a/10", PARENT, hint="x" * 1024),
            entry("/a/11", PARENT, store_svid=True),
        )
        assert [r.status.code for r in results] == [STATUS_OK] * len(results), results

    async def test_a_mixed_batch(self, server: RunningServer) -> None:
        await server.create(entry("/b/1", PARENT))
        results = await create(
            server, entry("/b/2", PARENT), types_pb2.Entry(), entry("/b/1", PARENT), entry("/b/3", PARENT)
        )
        assert [r.status.code for r in results] == [STATUS_OK, INVALID, EXISTS, STATUS_OK]
        assert await create(server) == []

    async def test_a_thousand_within_a_second(self, server: RunningServer) -> None:
        many = [entry(f"/k/{i}", PARENT, f"unix:uid:{i}") for i in range(1000)]
        started = time.perf_counter()
        results = await create(server, *many)
        seconds = time.perf_counter() - started
        assert {r.status.code for r in results} == {STATUS_OK}
        assert seconds < 3, seconds  # a noisy machine; the benchmark holds the figure

    async def test_too_many(self, server: RunningServer) -> None:
        ids = [str(i) for i in range(10_001)]
        with refused(Code.RESOURCE_EXHAUSTED, "at most"):
            await server.local.entries.BatchDeleteEntry(pb.BatchDeleteEntryRequest(ids=ids))

    async def test_an_oversized_message_is_refused_unread(self, server: RunningServer) -> None:
        with refused(Code.RESOURCE_EXHAUSTED):
            await create(server, entry("/e", PARENT, hint="x" * (4 << 20)))


class TestRead:
    async def test_get(self, server: RunningServer) -> None:
        (made,) = await server.create(entry("/e/1", PARENT))
        found = await server.local.entries.GetEntry(pb.GetEntryRequest(id=made.id))
        assert found == made
        masked = await server.local.entries.GetEntry(
            pb.GetEntryRequest(id=made.id, output_mask=Mask(spiffe_id=True, revision_number=True))
        )
        assert masked == types_pb2.Entry(id=made.id, spiffe_id=made.spiffe_id)
        with refused(Code.NOT_FOUND, "entry not found"):
            await server.local.entries.GetEntry(pb.GetEntryRequest(id="nope"))
        with refused(Code.INVALID_ARGUMENT, "missing ID"):
            await server.local.entries.GetEntry(pb.GetEntryRequest())

    async def test_pages(self, server: RunningServer) -> None:
        await server.create(*(entry(f"/p/{i}", PARENT) for i in range(5)))
        everything = [f"/p/{i}" for i in range(5)]
        assert await listed(server) == (everything, "")
        assert await listed(server, page_size=-1) == (everything, "")
        assert (await listed(server, page_token="whatever"))[0] == everything
        first, token = await listed(server, page_size=2)
        await server.local.entries.BatchCreateEntry(pb.BatchCreateEntryRequest(entries=[entry("/p/5", PARENT)]))
        second, token = await listed(server, page_size=2, page_token=token)
        third, token = await listed(server, page_size=2, page_token=token)
        assert first + second + third == [*everything, "/p/5"]
        assert token == ""
        with refused(Code.INVALID_ARGUMENT, "page token"):
            await listed(server, page_size=2, page_token="garbage")

    async def test_filters(self, server: RunningServer) -> None:
        await server.create(
            entry("/f/plain", PARENT, "unix:uid:1000"),
            entry("/f/full", PARENT, "unix:uid:1000", "unix:gid:7", hint="internal"),
            entry("/f/down", "/other", "unix:uid:2", downstream=True),
        )
        both = [types_pb2.Selector(type="unix", value=value) for value in ("uid:1000", "gid:7")]

        async def by(**fields: Any) -> list[str]:
            request_filter = pb.ListEntriesRequest.Filter()
            for name, value in fields.items():
                getattr(request_filter, name).MergeFrom(value)
            count_filter = pb.CountEntriesRequest.Filter.FromString(request_filter.SerializeToString())
            found, _ = await listed(server, filter=request_filter)
            count = await server.local.entries.CountEntries(pb.CountEntriesRequest(filter=count_filter))
            assert count.count == len(found)
            return found

        everything = ["/f/plain", "/f/full", "/f/down"]
        hint = type(pb.ListEntriesRequest.Filter().by_hint)
        flag = type(pb.ListEntriesRequest.Filter().by_downstream)
        match = types_pb2.SelectorMatch
        assert await by() == everything
        assert await by(by_spiffe_id=spiffe_id("/f/full")) == ["/f/full"]
        assert await by(by_parent_id=spiffe_id("/other")) == ["/f/down"]
        assert await by(by_hint=hint(value="internal")) == ["/f/full"]
        assert await by(by_hint=hint(value="")) == everything
        assert await by(by_downstream=flag(value=True)) == ["/f/down"]
        assert await by(by_downstream=flag(value=False)) == everything
        assert await by(by_selectors=match(selectors=both, match=match.MATCH_EXACT)) == ["/f/full"]
        assert await by(by_selectors=match(selectors=both, match=match.MATCH_SUBSET)) == ["/f/plain", "/f/full"]
        assert await by(by_selectors=match(selectors=both, match=match.MATCH_SUPERSET)) == ["/f/full"]
        assert await by(by_selectors=match(selectors=both, match=match.MATCH_ANY)) == ["/f/plain", "/f/full"]
        many = [types_pb2.Selector(type="t", value=str(number)) for number in range(MAX_MEMBERS)]
        assert await by(by_selectors=match(selectors=many, match=match.MATCH_ANY)) == []
        with refused(Code.INVALID_ARGUMENT, "at most", reason="TOO_MANY"):
            await by(by_selectors=match(selectors=[*many, *both], match=match.MATCH_ANY))
        domains = types_pb2.FederatesWithMatch(trust_domains=[f"d{n}.org" for n in range(MAX_MEMBERS + 1)], match=3)
        with refused(Code.INVALID_ARGUMENT, "at most", reason="TOO_MANY"):
            await by(by_federates_with=domains)
        with refused(Code.INVALID_ARGUMENT, "malformed SPIFFE ID filter"):
            await by(by_spiffe_id=spiffe_id("/x", "foreign.org"))
        with refused(Code.INVALID_ARGUMENT, "malformed parent ID filter"):
            await by(by_parent_id=spiffe_id("bad"))
        colon = match(selectors=[types_pb2.Selector(type="a:b", value="x")])
        with refused(Code.INVALID_ARGUMENT, "malformed selectors filter"):
            await by(by_selectors=colon)
        empty = pb.ListEntriesRequest.Filter()
        empty.by_selectors.SetInParent()
        with refused(Code.INVALID_ARGUMENT, "empty selector set"):
            await listed(server, filter=empty)


class TestUpdate:
    async def test_revisions_and_masks(self, server: RunningServer) -> None:
        (made,) = await server.create(entry("/u/1", PARENT))
        (result,) = await update(server, entry("/u/1new", PARENT, id=made.id))
        assert (result.entry.spiffe_id.path, result.entry.revision_number) == ("/u/1new", 1)
        ttl = types_pb2.Entry(id=made.id, x509_svid_ttl=300)
        for revision in (2, 3):
            (result,) = await update(server, ttl, input_mask=Mask(x509_svid_ttl=True))
            assert (result.entry.x509_svid_ttl, result.entry.revision_number) == (300, revision)
        (result,) = await update(server, types_pb2.Entry(id=made.id), input_mask=Mask())
        assert (result.entry.x509_svid_ttl, result.entry.revision_number) == (300, 4)
        given = types_pb2.Entry(id=made.id, revision_number=99, hint="h")
        (result,) = await update(server, given, input_mask=Mask(revision_number=True, hint=True))
        assert (result.entry.hint, result.entry.revision_number) == ("h", 5)
        (result,) = await update(server, ttl, input_mask=Mask(x509_svid_ttl=True), output_mask=Mask(x509_svid_ttl=True))
        assert result.entry == types_pb2.Entry(id=made.id, x509_svid_ttl=300)

    async def test_refused_items(self, server: RunningServer) -> None:
        (made,) = await server.create(entry("/u/1", PARENT))
        just = types_pb2.Entry(id=made.id)
        for mask in (Mask(spiffe_id=True), Mask(selectors=True), Mask(parent_id=True)):
            (result,) = await update(server, just, input_mask=mask)
            assert result.status.code == INVALID
        (result,) = await update(server, just, input_mask=Mask(dns_names=True))
        assert result.status.code == STATUS_OK
        negative = types_pb2.Entry(id=made.id, x509_svid_ttl=-5)
        missing = types_pb2.Entry(id="nope", hint="m")
        unknown = types_pb2.Entry(id=made.id, federates_with=["unknown.org"])
        assert (await update(server, negative, input_mask=Mask(x509_svid_ttl=True)))[0].status.code == INVALID
        assert (await update(server, unknown, input_mask=Mask(federates_with=True)))[0].status.code == PRECONDITION
        found, lost, nameless = await update(
            server,
            types_pb2.Entry(id=made.id, hint="m"),
            missing,
            types_pb2.Entry(hint="m"),
            input_mask=Mask(hint=True),
        )
        assert [r.status.code for r in (found, lost, nameless)] == [STATUS_OK, NOT_FOUND, NOT_FOUND]
        assert await update(server) == []

    async def test_may_become_similar_to_another(self, server: RunningServer) -> None:
        one, _ = await server.create(entry("/u/1", PARENT), entry("/u/2", PARENT))
        (result,) = await update(server, entry("/u/2", PARENT, id=one.id), input_mask=Mask(spiffe_id=True))
        assert result.status.code == STATUS_OK


async def test_delete(server: RunningServer) -> None:
    (made,) = await server.create(entry("/d/1", PARENT))
    request = pb.BatchDeleteEntryRequest(ids=[made.id, "nope", "", made.id])
    results = (await server.local.entries.BatchDeleteEntry(request)).results
    assert [(r.status.code, r.id) for r in results] == [(0, made.id), (5, "nope"), (3, ""), (5, made.id)]
    assert not (await server.local.entries.BatchDeleteEntry(pb.BatchDeleteEntryRequest())).results


class TestAuthorized:
    async def test_what_an_agent_sees_at_once(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        mine, nested, _ = await server.create(
            entry("/w/1", identity.path), entry("/w/2", "/w/1"), entry("/w/3", "/spire/agent/join_token/other")
        )
        answer = await caller.entries.GetAuthorizedEntries(pb.GetAuthorizedEntriesRequest())
        assert {e.id: e for e in answer.entries} == {mine.id: mine, nested.id: nested}
        masked = await caller.entries.GetAuthorizedEntries(pb.GetAuthorizedEntriesRequest(output_mask=Mask()))
        assert list(masked.entries) == [types_pb2.Entry(id=i) for i in sorted((mine.id, nested.id))]

    async def test_sync_of_a_small_set(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w/1", identity.path))
        first = pb.SyncAuthorizedEntriesRequest()
        call = caller.entries.SyncAuthorizedEntries(iter([first, pb.SyncAuthorizedEntriesRequest(ids=[made.id])]))
        assert [list(answer.entries) async for answer in call] == [[made]]

    async def test_sync_refuses(self, server: RunningServer) -> None:
        _, caller = await server.agent()
        for request, part in (
            (pb.SyncAuthorizedEntriesRequest(ids=["x"]), "specifying IDs on initial request is not supported"),
            (pb.SyncAuthorizedEntriesRequest(output_mask=Mask(spiffe_id=True)), "revision number cannot be masked"),
            (pb.SyncAuthorizedEntriesRequest(output_mask=Mask()), "revision number cannot be masked"),
        ):
            with refused(Code.INVALID_ARGUMENT, part):
                async for _ in caller.entries.SyncAuthorizedEntries(iter([request])):
                    pass

    async def test_sync_of_a_large_set_pages(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        made = await server.create(*(entry(f"/big/{i}", identity.path, f"t:v{i}") for i in range(501)))
        call = caller.entries.SyncAuthorizedEntries(timeout=20)
        await call.write(pb.SyncAuthorizedEntriesRequest(output_mask=Mask(revision_number=True, spiffe_id=True)))
        revisions = await pages(call, "entry_revisions")
        assert [len(page) for page in revisions] == [500, 1]
        assert [r.id for page in revisions for r in page] == sorted(e.id for e in made)
        wanted = [made[2].id, made[0].id, "unknown"]
        await call.write(pb.SyncAuthorizedEntriesRequest(ids=wanted))
        (answer,) = await pages(call, "entries")
        assert [e.id for e in answer] == sorted(wanted[:2])
        assert not answer[0].selectors
        await call.write(pb.SyncAuthorizedEntriesRequest(ids=[e.id for e in made]))
        assert [len(page) for page in await pages(call, "entries")] == [500, 1]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is Code.OK


async def pages(call: Any, field: str) -> list[Any]:
    found = []
    while True:
        answer = await call.read()
        found.append(list(getattr(answer, field)))
        if not answer.more:
            return found


async def test_a_request_that_is_no_protobuf(server: RunningServer) -> None:
    call = server.local.channel.unary_unary("/spire.api.server.entry.v1.Entry/GetEntry")
    with refused(Code.INTERNAL, "request is not a message of this method", "REQUEST_MALFORMED"):
        await call(b"\xff\xff\xff")
    anonymous = await server.caller()
    with refused(Code.PERMISSION_DENIED):  # nobody's bytes are parsed before they may call
        await anonymous.channel.unary_unary("/spire.api.server.entry.v1.Entry/GetEntry")(b"\xff\xff\xff")
