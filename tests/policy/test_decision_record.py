"""Records of decisions: written and read again they are the same, and what is no record is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from policy.decision import Decision, Reason
from policy.decision_record import DecisionRecord, Source, record_of
from policy.model import Request

AT = datetime(2026, 11, 26, 10, 0, 0, 123, tzinfo=UTC)
REQUEST = Request(
    principal="td/ns/a/sa/web",
    source_ip="10.0.0.1",
    destination_port=8080,
    method="GET",
    path="/orders",
    host="shop",
    headers={"x-a": "1"},
    claims={"iss": "i", "sub": "s", "n": {"m": ["x"]}},
    metadata={"f": {"k": ["v"]}},
)
DECISION = Decision(
    allowed=True,
    reason=Reason.ALLOWED_BY_RULE,
    policy="shop/orders",
    rule=2,
    shadow=Decision(allowed=False, reason=Reason.DENIED_BY_RULE, policy="shop/new", rule=0),
)


def record() -> DecisionRecord:
    return record_of(
        DECISION, REQUEST, id="p-1", at=AT, source=Source.EXT_AUTHZ, target="spiffe://td/t", revision=7, masked=("a",)
    )


def test_a_record_is_the_same_after_it_was_written_and_read() -> None:
    line = record().json_line()
    assert "\n" not in line
    assert DecisionRecord.from_json(line) == record()
    assert DecisionRecord.from_json(line.encode()) == record()


def test_a_record_has_the_request_to_decide_it_again() -> None:
    assert DecisionRecord.from_json(record().json_line()).request == REQUEST


def test_what_is_not_there_is_not_written_and_a_refusal_is() -> None:
    found = record_of(
        Decision(allowed=False, reason=Reason.NOTHING_ALLOWS),
        Request(http=False),
        id="x",
        at=AT,
        source=Source.PUSHED,
        target="spiffe://td/t",
    )
    document = json.loads(found.json_line())
    assert document == {
        "id": "x",
        "at": "2026-11-26T10:00:00.000123+00:00",
        "source": "pushed",
        "target": "spiffe://td/t",
        "allowed": False,
        "reason": "NOTHING_ALLOWS",
        "http": False,
    }
    assert DecisionRecord.from_json(found.json_line()) == found


def test_names_of_a_later_version_are_passed_over() -> None:
    assert (
        DecisionRecord.from_document({**record().document(), "later": 1, "providers": [], "masked": ["a"]}) == record()
    )


@pytest.mark.parametrize(
    "change",
    [
        *({"id": 1}, {"allowed": 1}, {"allowed": "true"}, {"port": True}, {"port": "80"}, {"rule": 1.5}),
        *({"at": "yesterday"}, {"at": "2026-11-26T10:00:00"}, {"source": "guess"}, {"headers": {"a": 1}}),
        *({"headers": ["a"]}, {"claims": "x"}, {"metadata": {"a": 1}}, {"masked": [1]}, {"id": None}),
    ],
    ids=str,
)
def test_what_is_ill_typed_is_no_record(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        DecisionRecord.from_document({**json.loads(record().json_line()), **change})


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", "[" * 100_000, '"' + "x" * 300_000 + '"'])
def test_what_is_no_object_is_no_record(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        DecisionRecord.from_json(text)
