"""The decision log over gRPC: by id, by filter, as it goes; bounded, and clear about what it does not have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from ca.proto.burgee import decisions_pb2 as wire
from ca.proto.burgee import decisions_pb2_grpc
from ca.runtime import decision_service
from ca.runtime.config import from_values
from ca.runtime.decision_log import DecisionLog
from ca.runtime.decision_log_config import DecisionLogConfig
from ca.runtime.decision_service import add_decisions
from ca.runtime.rpc import connect, grpc_server
from ca.runtime.rpc_errors import error_of
from policy.decision_record import DecisionRecord, Source
from tests.ca.runtime.test_decision_log import AT, record


class Lab:
    def __init__(self, log: DecisionLog, stub: decisions_pb2_grpc.DecisionsAsyncStub) -> None:
        self.log, self.stub = log, stub

    async def ids(self, **asked: object) -> list[str]:
        answer = await self.stub.List(wire.ListRequest(**asked))  # type: ignore[arg-type]
        return [DecisionRecord.from_json(d.record).id for d in answer.decisions]


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    tmp_path.chmod(0o700)
    log = DecisionLog(from_values({}, DecisionLogConfig), tmp_path / "decisions")
    log.start()
    server = grpc_server(tmp_path / "d.sock")
    add_decisions(log, server)
    await server.start()
    async with connect(tmp_path / "d.sock") as channel:
        yield Lab(log, decisions_pb2_grpc.DecisionsStub(channel))  # type: ignore[arg-type]
    await server.stop(None)
    await asyncio.to_thread(log.close)


async def reason(awaitable: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable  # type: ignore[misc]
    return error_of(caught.value).reason


async def test_a_decision_is_found_by_its_id_at_once(lab: Lab) -> None:
    lab.log.add(record(1, claims={"sub": "x"}))
    found = await lab.stub.Get(wire.GetRequest(id="p-1"))
    assert DecisionRecord.from_json(found.record) == record(1, claims={"sub": "x"})


async def test_of_two_records_of_an_id_the_last_is_given(lab: Lab) -> None:
    lab.log.add(record(1, allowed=True, reason="ALLOWED_BY_RULE"))
    lab.log.add(record(1, reason="ASK_FAILED"))
    assert b"ASK_FAILED" in (await lab.stub.Get(wire.GetRequest(id="p-1"))).record


async def test_what_is_not_there_is_said_with_its_possible_causes(lab: Lab) -> None:
    assert await reason(lab.stub.Get(wire.GetRequest(id="p-1"))) == "DECISION_NOT_FOUND"
    for bad in ("", "p-*", "x" * 300):
        assert await reason(lab.stub.Get(wire.GetRequest(id=bad))) == "DECISION_ID"


async def test_lists_are_filtered_and_bounded(lab: Lab) -> None:
    for number in range(20):
        source = Source.PUSHED if number % 2 else Source.EXT_AUTHZ
        lab.log.add(record(number, source=source, allowed=number < 3, method="GET", path=f"/a/{number}", shadow=True))
    assert len(await lab.ids()) == 20
    assert await lab.ids(filter=wire.Filter(allowed=True)) == ["p-2", "p-1", "p-0"]
    assert await lab.ids(filter=wire.Filter(source="pushed"), limit=2) == ["p-19", "p-17"]
    assert len(await lab.ids(filter=wire.Filter(shadow_differs=True))) == 17
    assert await lab.ids(filter=wire.Filter(path="/a/1*", allowed=True)) == ["p-1"]
    until = (AT + timedelta(seconds=1)).isoformat()
    assert await lab.ids(until=until) == ["p-0"]
    assert await lab.ids(since=(AT + timedelta(seconds=19)).isoformat()) == ["p-19"]
    assert await reason(lab.stub.List(wire.ListRequest(since="yesterday"))) == "DECISION_FILTER"
    assert await reason(lab.stub.List(wire.ListRequest(until="2026-01-01T00:00:00"))) == "DECISION_FILTER"
    assert await reason(lab.stub.List(wire.ListRequest(filter=wire.Filter(source="x")))) == "DECISION_FILTER"


async def test_who_watches_sees_what_fits_and_is_told_what_was_missed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_service, "MAX_UNREAD", 2)
    watching = lab.stub.Watch(wire.WatchRequest(filter=wire.Filter(allowed=False)))
    assert await watching.read() == wire.WatchResponse()
    lab.log.add(record(0, allowed=True))
    for number in range(1, 6):
        lab.log.add(record(number))
    seen = [await asyncio.wait_for(watching.read(), 10) for _ in range(2)]
    lab.log.add(record(9))
    seen.append(await asyncio.wait_for(watching.read(), 10))
    ids = [DecisionRecord.from_json(one.decision.record).id for one in seen]
    assert ids == ["p-1", "p-2", "p-9"]
    assert sum(one.missed for one in seen) == 3
    watching.cancel()


async def test_watchers_are_few(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_service, "MAX_WATCHERS", 1)
    first = lab.stub.Watch(wire.WatchRequest())
    await first.read()
    assert await reason(lab.stub.Watch(wire.WatchRequest()).read()) == "WATCHERS"
    first.cancel()
