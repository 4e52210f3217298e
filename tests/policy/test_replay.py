"""A log under other policies: what changes is grouped and counted, what cannot be known is set apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from policy.decision_record import DecisionRecord, Source, record_of
from policy.model import Request, Target
from policy.replay import MAX_GROUPS, Replay, replay
from tests.policy.test_explain import ORDERS, READ, STOP, WEB, snapshot

START = datetime(2026, 11, 1, tzinfo=UTC)
NOW = snapshot(READ, STOP)


def record(number: int = 0, method: str = "GET", path: str = "/orders/7", **more: Any) -> DecisionRecord:
    request = Request(principal=WEB, method=method, path=path)
    decision = NOW.decide(ORDERS, request)
    at = START + timedelta(seconds=number)
    made = record_of(decision, request, id=f"d{number}", at=at, source=Source.EXT_AUTHZ, target=ORDERS)
    return DecisionRecord.from_document(made.document() | more)


def log() -> Iterator[DecisionRecord]:
    for number in range(10):
        yield record(number, path=f"/orders/{number}")
    for number in range(10, 13):
        yield record(number, "POST", f"/orders/{number}")


def test_the_same_policies_change_nothing() -> None:
    found = replay(log(), NOW)
    assert (found.records, found.changed) == (13, False)
    assert found.text() == "of 13 recorded requests: 0 newly denied, 0 newly allowed"


def test_changes_are_grouped_by_who_whom_and_shape_with_the_rules() -> None:
    found = replay(log(), snapshot(READ.replace("GET", "POST"), STOP))
    (denied,) = found.newly_denied
    assert str(denied) == f"{WEB} -> {ORDERS} GET /orders/{{*}} (10)"
    assert (denied.before, denied.after) == ("shop/orders-read#0", "NOTHING_ALLOWS")
    assert denied.why == "nearest is shop/orders-read#0, method GET not in [POST]"
    assert (denied.first, denied.last) == (START, START + timedelta(seconds=9))
    (allowed,) = found.newly_allowed
    assert (allowed.before, allowed.after, allowed.count) == ("NOTHING_ALLOWS", "shop/orders-read#0", 3)
    assert found.text().splitlines() == [
        "of 13 recorded requests: 10 newly denied, 3 newly allowed",
        "newly denied:",
        f"  {WEB} -> {ORDERS} GET /orders/{{*}} (10)",
        "    shop/orders-read#0 -> NOTHING_ALLOWS: nearest is shop/orders-read#0, method GET not in [POST]",
        "newly allowed:",
        f"  {WEB} -> {ORDERS} POST /orders/{{*}} (3)",
        "    NOTHING_ALLOWS -> shop/orders-read#0",
    ]
    document = json.loads(json.dumps(found.document()))
    assert document["newly_denied"][0]["example"] == "d0"


def test_what_happened_most_often_stands_first() -> None:
    few, many = ([record(n, path=f"/{name}") for n in range(count)] for name, count in (("few", 2), ("many", 3)))
    gone = [DecisionRecord.from_document(one.document() | {"allowed": True}) for one in (*few, *many)]
    found = replay(gone, snapshot(STOP))
    assert [(group.path, group.count) for group in found.newly_denied] == [("/many", 3), ("/few", 2)]


def test_a_deny_rule_that_is_responsible_is_named() -> None:
    found = replay(log(), snapshot(READ, STOP.replace("DELETE", "GET")))
    assert [(group.after, group.why) for group in found.newly_denied] == [("shop/stop#0", "method GET in [GET]")]


def test_what_cannot_be_known_is_set_apart() -> None:
    def counts(found: Replay) -> tuple[int, int, int, bool]:
        return found.unknown_targets, found.masked, found.unlike, found.changed

    elsewhere = record(target=ORDERS + "x")
    assert counts(replay([elsewhere], NOW)) == (1, 0, 0, False)
    masked = record(masked=["headers.x-debug"])
    assert counts(replay([masked], snapshot(STOP, READ))) == (0, 1, 0, False)
    assert counts(replay([record(masked=["headers.cookie"])], NOW)) == (0, 0, 0, False)
    cel = READ.replace("to:", "burgee: {condition: \"request.host == 'a'\"}\n    to:", 1)
    assert counts(replay([record(masked=["headers.cookie"])], snapshot(cel))) == (0, 1, 0, False)
    # of what a proxy decided by itself no header is known
    pushed = record(masked=["headers", "metadata", "method"])
    assert counts(replay([pushed], snapshot(STOP, READ), current=NOW)) == (0, 1, 0, False)
    plain = READ.replace('methods: ["GET"], ', "")
    assert counts(replay([pushed], snapshot(plain))) == (0, 0, 0, False)
    assert counts(replay([pushed], snapshot(READ))) == (0, 1, 0, False)
    tokens = READ.replace("    to:", "    when: [{key: 'request.auth.claims[group]', values: [a]}]\n    to:")
    assert counts(replay([record(masked=["claims"])], snapshot(tokens))) == (0, 1, 0, False)
    otherwise = record(allowed=False)
    assert counts(replay([otherwise], NOW, current=NOW)) == (0, 0, 1, False)
    assert counts(replay([otherwise], NOW)) == (0, 0, 0, True)


ODD: dict[str, Any] = {"path": "/orders//7"}
"""Which proxies read differently, so that they refuse it where rules look at paths."""


def test_what_proxies_refuse_unread_is_refused_again() -> None:
    anything = READ.replace(', paths: ["/orders/*"]', "")
    guarded = replace(record(**ODD), allowed=False, reason="PATH_NOT_NORMAL", policy=None, rule=None)
    assert not replay([guarded], NOW).changed
    (allowed,) = replay([guarded], snapshot(anything)).newly_allowed
    assert (allowed.before, allowed.after) == ("PATH_NOT_NORMAL", "shop/orders-read#0")
    seen = record(**ODD, allowed=True)
    (denied,) = replay([seen], NOW).newly_denied
    assert (denied.after, denied.why) == ("PATH_NOT_NORMAL", "the path is one that proxies read differently")
    assert replay([seen], NOW, current=NOW).unlike == 1
    normalizing = (Target(spiffe_id=ORDERS, namespace="shop", normalized=True),)
    assert not replay([seen], snapshot(READ, STOP, targets=normalizing)).changed


def test_what_was_only_asked_about_is_passed_over() -> None:
    """An administrator's questions are in the log as well; who asks may name any caller."""
    found = replay([*log(), record(allowed=False, source="evaluate")], snapshot(STOP))
    assert (found.records, found.questions, sum(group.count for group in found.newly_denied)) == (14, 1, 10)
    assert found.newly_allowed == []
    assert found.document()["questions"] == 1
    assert "1 were only asked about, and are passed over" in found.text()


def test_groups_are_bounded_and_the_rest_is_counted() -> None:
    found = replay(
        (record(n, path=f"/orders/{'x' * 3}{chr(97 + n % 26)}{'y' * (n // 26)}") for n in range(MAX_GROUPS + 5)),
        snapshot(STOP),
    )
    assert (len(found.newly_denied), found.left_out) == (MAX_GROUPS, 5)
    assert "… 4950 more groups" in found.text()
