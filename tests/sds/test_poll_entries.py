"""The agent's side of SyncAuthorizedEntries, against the exchanges that were recorded for sets of every size."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable

import grpc
import pytest

from ca.errors import BurgeeError
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import TrustDomain
from ca.proto.spire import server_entry_pb2_grpc, types_pb2
from ca.runtime.rpc import connect, grpc_server
from sds.entries import is_partial
from sds.poll_entries import EntryPoll
from sds.views import asked_for
from tests.sds.fake_entries import RECORDED_MASK, FakeEntries

TD = TrustDomain("example.org")


def wire_entry(number: int, **changes: object) -> types_pb2.Entry:
    values = {
        "id": f"e-{number:05}",
        "spiffe_id": types_pb2.SPIFFEID(trust_domain="example.org", path=f"/w/{number}"),
        "parent_id": types_pb2.SPIFFEID(trust_domain="example.org", path="/spire/agent/join_token/t1"),
        "selectors": [types_pb2.Selector(type="t", value=f"v{number}")],
        "dns_names": ["secret.example.org"],
        "x509_svid_ttl": 77,
        "created_at": 1_700_000_000,
    }
    return types_pb2.Entry(**(values | changes))  # type: ignore[arg-type]


class Server:
    """Entries by id, which the test changes at will."""

    def __init__(self) -> None:
        self.entries: dict[str, types_pb2.Entry] = {}
        self.service = FakeEntries(entries=lambda: self.entries.values())

    def hold(self, entries: Iterable[types_pb2.Entry]) -> None:
        self.entries |= {entry.id: entry for entry in entries}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    directory = tempfile.mkdtemp(prefix="bg-")
    running = grpc_server(f"{directory}/s")
    server_entry_pb2_grpc.add_EntryServicer_to_server(server.service, running)
    await running.start()
    opened = connect(f"{directory}/s")
    yield opened
    await opened.close()
    await running.stop(None)
    shutil.rmtree(directory)


@pytest.mark.parametrize("count", [0, 26, 500])
async def test_a_small_set_comes_in_full_for_one_request(server: Server, channel: grpc.aio.Channel, count: int) -> None:
    server.hold(wire_entry(number) for number in range(count))
    poll = EntryPoll(TD)
    for round_number in (1, 2):
        assert set(await poll.refresh(channel)) == set(server.entries)
        assert len(server.service.exchanges) == round_number
        (only,) = server.service.exchanges[-1]
        assert only.output_mask == RECORDED_MASK
        assert not only.ids
    assert server.service.half_closed == 2


@pytest.mark.parametrize("count", [501, 1001, 2500])
async def test_of_a_large_set_only_what_is_missing_is_asked_for(
    server: Server, channel: grpc.aio.Channel, count: int
) -> None:
    server.hold(wire_entry(number) for number in range(count))
    poll = EntryPoll(TD)
    first = await poll.refresh(channel)
    assert set(first) == set(server.entries)
    asked = server.service.exchanges[0]
    assert asked[0].output_mask == RECORDED_MASK
    assert [len(message.ids) for message in asked[1:]] == [500] * (count // 500) + [count % 500] * (count % 500 > 0)
    ids = [entry_id for message in asked[1:] for entry_id in message.ids]
    assert ids == sorted(server.entries)
    assert not any(message.HasField("output_mask") for message in asked[1:])

    second = await poll.refresh(channel)
    assert second == first
    assert len(server.service.exchanges[1]) == 1, "nothing is missing: nothing is asked for"
    assert all(second[i] is first[i] for i in first)

    server.hold([wire_entry(7, hint="h", revision_number=1), wire_entry(3, created_at=1_700_000_009)])
    server.hold([wire_entry(count)])
    del server.entries["e-00005"]
    third = await poll.refresh(channel)
    assert list(server.service.exchanges[2][1].ids) == ["e-00003", "e-00007", f"e-{count:05}"]
    assert set(third) == set(server.entries)
    assert third["e-00007"].hint == "h"
    assert third["e-00009"] is first["e-00009"]
    assert server.service.half_closed == 3


async def test_a_set_that_shrinks_and_grows_over_the_limit(server: Server, channel: grpc.aio.Channel) -> None:
    poll = EntryPoll(TD)
    for count in (499, 501, 500, 502):
        server.entries = {}
        server.hold(wire_entry(number) for number in range(count))
        assert set(await poll.refresh(channel)) == set(server.entries)
    assert [len(messages) for messages in server.service.exchanges] == [1, 2, 1, 2]
    assert list(server.service.exchanges[1][1].ids) == ["e-00499", "e-00500"]


async def test_what_goes_between_revision_and_request_has_gone(server: Server, channel: grpc.aio.Channel) -> None:
    server.hold(wire_entry(number) for number in range(600))
    poll = EntryPoll(TD)
    await poll.refresh(channel)
    server.hold([wire_entry(7, revision_number=1)])
    server.service.vanish = {"e-00007"}
    assert "e-00007" not in await poll.refresh(channel)


@pytest.mark.parametrize(("count", "answers"), [(5, 0), (1001, 0), (1001, 1), (1001, 3), (1001, 5)])
async def test_an_answer_that_ends_early_takes_nothing_away(
    server: Server, channel: grpc.aio.Channel, count: int, answers: int
) -> None:
    server.hold(wire_entry(number) for number in range(count))
    poll = EntryPoll(TD)
    before = await poll.refresh(channel)
    server.hold(wire_entry(number, revision_number=1) for number in range(count))
    server.service.break_after = answers
    with pytest.raises(BurgeeError) as caught:
        await poll.refresh(channel)
    assert caught.value.reason == "SYNC_INCOMPLETE"
    server.service.break_after = None
    after = await poll.refresh(channel)
    assert after.keys() == before.keys()
    assert {entry.revision_number for entry in after.values()} == {1}


@pytest.mark.parametrize("count", [3, 501])
async def test_a_malformed_entry_does_not_keep_the_others_out(
    server: Server, channel: grpc.aio.Channel, count: int
) -> None:
    server.hold(wire_entry(number) for number in range(count))
    poll = EntryPoll(TD)
    await poll.refresh(channel)
    server.hold([wire_entry(1, revision_number=1, spiffe_id=types_pb2.SPIFFEID(trust_domain="NOT", path="x"))])
    for _ in range(2):
        assert server.entries.keys() - (await poll.refresh(channel)).keys() == {"e-00001"}
    if count > 500:
        assert len(server.service.exchanges[-1]) == 1, "what cannot be read is not fetched again and again"


async def test_without_the_quicker_call_all_entries_are_read(server: Server, channel: grpc.aio.Channel) -> None:
    server.service.sync = False
    server.hold(wire_entry(number) for number in range(700))
    poll = EntryPoll(TD)
    for _ in range(2):
        assert set(await poll.refresh(channel)) == set(server.entries)
    assert [request.output_mask for request in server.service.full_reads] == [RECORDED_MASK] * 2
    assert poll.whole


async def test_other_errors_are_the_callers(server: Server, channel: grpc.aio.Channel) -> None:
    def refuse(method: str) -> None:
        raise BurgeeError("broken")

    server.service.called = refuse
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await EntryPoll(TD).refresh(channel)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_what_the_mask_hides_is_told_from_what_is_empty(server: Server, channel: grpc.aio.Channel) -> None:
    """The server signs TTL and DNS names in; whether they changed shows in the revision alone."""
    server.hold([wire_entry(1)])
    poll = EntryPoll(TD)
    before = (await poll.refresh(channel))["e-00001"]
    assert is_partial(before)
    assert (before.dns_names, before.x509_svid_ttl_seconds) == ((), 0)
    for changes in ({"hint": "h", "revision_number": 1}, {"created_at": 1_700_000_001}):
        server.hold([wire_entry(1, **changes)])
        after: RegistrationEntry = (await poll.refresh(channel))["e-00001"]
        assert asked_for(after) != asked_for(before)
