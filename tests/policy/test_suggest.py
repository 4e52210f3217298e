"""What is suggested is taken by our reader, allows what was allowed, and admits no more than is said."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.decision_record import DecisionRecord, Source
from policy.model import Mesh, Request, Target
from policy.parse import parse
from policy.path_shapes import Shape, Thresholds, looks_like_identifier, shape_of, shapes
from policy.replay import replay
from policy.snapshot import Snapshot, compile_set
from policy.suggest import Suggestion, suggest
from policy.templates import Template
from tests.policy.strategies import METHODS, PATHS, PRINCIPALS

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
AT = datetime(2026, 11, 1, tzinfo=UTC)
ORDERS = "spiffe://td/ns/shop/sa/orders"
WEB = "td/ns/shop/sa/web"


def record(**more: Any) -> DecisionRecord:
    known: dict[str, Any] = {"principal": WEB, "method": "GET", "path": "/orders"}
    known |= {"id": "x", "at": AT, "source": Source.PUSHED, "target": ORDERS, "allowed": True, "reason": "r"}
    return DecisionRecord(**(known | more))


def compiled(found: Suggestion, *targets: str) -> Snapshot:
    named = [Target(spiffe_id=t, namespace=t.split("/")[4]) for t in (targets or (ORDERS,))]
    return compile_set(parse(found.text(), "suggested").policies, Mesh(trust_domains=("td",)), named)


def allowed(found: Suggestion, **asked: Any) -> bool:
    known: dict[str, Any] = {"principal": WEB, "method": "GET", "path": "/orders"}
    return compiled(found).decide(ORDERS, Request(**(known | asked))).allowed


def test_what_was_seen_is_allowed_and_nothing_beside_it() -> None:
    found = suggest([record(), record(method="POST", path="/pay"), record(allowed=False, path="/admin")])
    assert allowed(found)
    assert allowed(found, method="POST", path="/pay")
    for other in (
        {"path": "/pay"},
        {"path": "/admin"},
        {"method": "PUT"},
        {"principal": "td/ns/shop/sa/x"},
        {"principal": None},
    ):
        assert not allowed(found, **other)
    assert found.measure()["exact_share"] == 1.0
    assert found.measure()["templates"] == 0


def test_what_was_only_asked_about_becomes_no_permission() -> None:
    asked = record(source=Source.EVALUATE, principal="td/ns/shop/sa/stranger", path="/admin")
    found = suggest([record(), asked, asked])
    assert (found.records, found.allowed, found.questions) == (3, 1, 2)
    assert allowed(found)
    assert not allowed(found, principal="td/ns/shop/sa/stranger", path="/admin")
    assert "stranger" not in found.text()
    assert "2 records: what was asked about, and not done" in found.text()
    assert suggest([asked]).objects == []


def test_a_path_that_proxies_would_refuse_is_left_out_unless_they_normalize() -> None:
    odd = [record(path="/orders//1"), record(path="/orders/%2e%2e/x"), record(path="/orders/1")]
    found = suggest(odd)
    assert "2 records: the path is not normal, and proxies refuse such where rules look at paths" in found.text()
    assert not allowed(found, path="/orders//1")
    one = Target(spiffe_id=ORDERS, namespace="shop", normalized=True)
    assert suggest(odd, targets=[one]).left_out.total() == 0
    assert suggest(odd, targets=[one, replace(one, normalized=False)]).left_out.total() == 2


def test_identifiers_become_a_template_where_the_threshold_holds() -> None:
    seen = [record(path=f"/orders/{n}/lines") for n in (1, 22, 333)]
    found = suggest(seen)
    assert allowed(found, path="/orders/4444/lines")
    assert not allowed(found, path="/orders/4444")
    assert not allowed(found, path="/orders/1/2/lines")
    assert [one.document() for one in found.opened] == [
        {"target": ORDERS, "callers": [WEB], "methods": ["GET"], "template": "/orders/{*}/lines", "seen": 3}
    ]
    assert (found.measure()["exact_share"], found.measure()["fewest_seen"]) == (0.0, 3)
    assert "GET /orders/{*}/lines by td/ns/shop/sa/web: 3 paths were seen" in found.text()
    few = suggest(seen[:2])
    assert not few.opened
    more = suggest([*seen, *(record(path=f"/carts/{n}/lines") for n in range(5)), record(path="/")])
    assert [one.seen for one in more.opened] == [5, 3]
    assert (more.measure()["exact_share"], more.measure()["fewest_seen"]) == (round(1 / 9, 4), 3)
    assert not allowed(few, path="/orders/4444/lines")
    bold = suggest(seen[:2], thresholds=Thresholds(identifiers=2))
    assert allowed(bold, path="/orders/9/lines")


def test_one_caller_gains_nothing_from_what_another_did() -> None:
    found = suggest(
        [*(record(path=f"/orders/{n}") for n in range(5)), record(principal="td/ns/shop/sa/batch", path="/orders/1")]
    )
    assert allowed(found, path="/orders/99")
    assert not allowed(found, path="/orders/99", principal="td/ns/shop/sa/batch")
    assert not allowed(found, path="/orders/99", method="POST")


def test_callers_that_did_the_same_share_a_rule() -> None:
    (policy,) = suggest([record(), record(principal="td/ns/shop/sa/batch")]).objects
    assert policy["spec"]["rules"][0]["from"] == [{"source": {"principals": ["td/ns/shop/sa/batch", WEB]}}]


def test_connections_are_allowed_by_port_and_said_to_be_wide() -> None:
    found = suggest([record(http=False, method=None, path=None, port=5432)])
    known = compiled(found)
    assert known.decide(ORDERS, Request(http=False, principal=WEB, destination_port=5432)).allowed
    assert not known.decide(ORDERS, Request(http=False, principal=WEB, destination_port=1)).allowed
    assert found.measure()["ports_alone"] == 1
    assert "by a port alone" in found.text()


def test_who_showed_no_certificate_is_written_as_that() -> None:
    found = suggest([record(principal=None)])
    assert allowed(found, principal=None)
    assert not allowed(found)


def test_what_cannot_be_written_is_left_out_with_its_reason() -> None:
    found = suggest(
        [
            record(target="spiffe://td/somewhere"),
            record(path=None),
            record(path="/a/*"),
            record(path="/a/{*}"),
            record(method=None),
            record(principal="td/*"),
            record(http=False, port=None),
            record(masked=("path",)),
        ]
    )
    assert found.objects == []
    assert found.left_out == {
        "the target's namespace is not known": 1,
        "the path is not known, or cannot be written": 3,
        "the method is not known, or none": 1,
        "the caller's name cannot be written": 1,
        "a connection whose port is not known": 1,
        "what it was about was masked": 1,
    }
    assert "# Left out, 3 records: the path is not known, or cannot be written." in found.text()


def test_a_workload_object_tells_the_namespace() -> None:
    found = suggest([record(target="spiffe://td/x")], targets=[Target(spiffe_id="spiffe://td/x", namespace="shop")])
    assert found.objects[0]["metadata"] == {"name": "suggested-x", "namespace": "shop"}


def test_names_do_not_meet_and_policies_do_not_grow_too_large() -> None:
    many = [record(principal=f"td/ns/a/sa/s{n}", path=f"/p/a{n}") for n in range(600)]
    other = record(target="spiffe://other/ns/shop/sa/orders")
    found = suggest([*many, other])
    names = [o["metadata"]["name"] for o in found.objects]
    assert names == ["suggested-orders", "suggested-orders-2", "suggested-orders-3"]
    assert len(parse(found.text(), "s").policies) == 3


def test_a_template_is_never_made_of_what_proxies_refuse() -> None:
    odd = [f"/a*b/{n}" for n in range(9)] + [f"/c/{n}/" for n in range(9)]
    assert all(not shape.template for shape in shapes(odd, Thresholds()))


def test_shapes() -> None:
    assert [
        w for w in ("1", "orders", "deadbeef", "deadbee1", "a1b2c3d", "v1", "2024-11-01") if looks_like_identifier(w)
    ] == [
        "1",
        "deadbee1",
        "a1b2c3d",
        "2024-11-01",
    ]
    assert looks_like_identifier("0b57a9e6-2c55-4c0e-9b9f-7c1e1b5a2d3f")
    assert shape_of("/orders/7/lines") == "/orders/{*}/lines"
    words = [f"/u/{chr(97 + n)}" for n in range(20)]
    assert shapes(words, Thresholds()) == (Shape(text="/u/{*}", seen=20, template=True),)
    assert len(shapes(words[:19], Thresholds())) == 19
    mixed = [*(f"/o/{n}" for n in range(3)), "/o/new", "/o"]
    assert [shape.text for shape in shapes(mixed, Thresholds())] == ["/o", "/o/new", "/o/{*}"]


RECORDS = st.builds(
    record,
    target=st.sampled_from([ORDERS, "spiffe://td/ns/a/sa/x", "spiffe://td/none"]),
    principal=st.none() | PRINCIPALS,
    method=st.none() | METHODS | st.sampled_from(["NO", "1e5", "on"]),
    path=st.none()
    | PATHS
    | st.builds("/o/{}/{}".format, st.integers(0, 30), st.sampled_from(["", "a", "1e5"]))
    | st.text(max_size=6),
    port=st.none() | st.sampled_from([80, 443]),
    http=st.integers(0, 4).map(bool),
    allowed=st.integers(0, 4).map(bool),
)


@settings(max_examples=500 if LONG else 60, deadline=None)
@given(st.lists(RECORDS, max_size=25))
def test_every_allowed_record_is_allowed(log: list[DecisionRecord]) -> None:
    found = suggest(log)
    json.dumps(found.document())
    known = compiled(found, ORDERS, "spiffe://td/ns/a/sa/x", "spiffe://td/ns/-/sa/none")
    left_out = 0
    for one in log:
        if not one.allowed:
            continue
        if suggest([one]).left_out:
            left_out += 1
        else:
            assert known.decide(one.target, one.request).allowed, one
    assert found.left_out.total() == left_out
    assert not replay((one for one in log if one.allowed and not suggest([one]).left_out), known).newly_denied


@settings(max_examples=500 if LONG else 60, deadline=None)
@given(st.lists(RECORDS, max_size=25), RECORDS)
def test_nothing_is_admitted_beyond_what_is_said(log: list[DecisionRecord], asked: DecisionRecord) -> None:
    """Ports are looked at where they were known, so that what differs by the port alone is not what was seen."""
    found = suggest(log)
    known = compiled(found, ORDERS, "spiffe://td/ns/a/sa/x")
    if found.ports or not asked.http or not known.decide(asked.target, asked.request).allowed:
        return
    same = [
        one
        for one in log
        if one.allowed
        and (one.target, one.principal, one.method) == (asked.target, asked.principal, asked.method)
        and (one.port is None or one.port == asked.port)
    ]
    templates = [Template(one.template) for one in found.opened if one.target == asked.target]
    assert any(one.path == asked.path for one in same) or any(t.matches(asked.path or "") for t in templates)
