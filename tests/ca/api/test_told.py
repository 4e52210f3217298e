"""What the server tells its operator of what it refuses and of what it cuts short: log lines and metrics."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ca.proto.spire import server_svid_pb2 as pb
from ca.runtime import log
from ca.runtime.metrics import REGISTRY
from tests.ca.api.http_client import locally, over_tls
from tests.ca.api.refusals import Code, refused
from tests.support.server import RunningServer, broken_csr, entry, make_csr, spiffe_id

REQUEST_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]+")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The log as programs read it."""
    target = io.StringIO()
    log.configure("json", "info", target)
    yield target
    log.configure()


def told(lines: io.StringIO, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_refused_items_of_a_batch_are_logged_by_reason_and_counted(
    server: RunningServer, lines: io.StringIO
) -> None:
    """The call as a whole goes well, so nothing else would tell of them."""
    identity, caller = await server.agent()
    (made,) = await server.create(entry("/w", identity.path))
    wanted = [(made.id, make_csr()), ("nope", make_csr()), ("no\npe", make_csr()), (made.id, broken_csr()), ("", b"x")]
    expected = {"ENTRY_NOT_AUTHORIZED": 2, "CSR_SIGNATURE": 1, "ENTRY_ID_MISSING": 1}
    before = {r: count("burgee_issue_failed_total", kind="x509", reason=r) for r in expected}
    params = [pb.NewX509SVIDParams(entry_id=entry_id, csr=csr) for entry_id, csr in wanted]
    await caller.svids.BatchNewX509SVID(pb.BatchNewX509SVIDRequest(params=params))
    found = {line["reason"]: line for line in told(lines, "X.509-SVIDs refused")}
    assert {reason: line["count"] for reason, line in found.items()} == expected
    for line in found.values():
        assert line["agent"] == f"spiffe://example.org{identity.path}"
        assert REQUEST_ID.fullmatch(line["request_id"])
    assert found["CSR_SIGNATURE"]["first_entry"] == f"`{made.id}`"
    assert found["ENTRY_NOT_AUTHORIZED"]["first_entry"] == "`nope`"
    for reason, number in expected.items():
        assert count("burgee_issue_failed_total", kind="x509", reason=reason) == before[reason] + number


async def test_a_batch_that_went_well_says_nothing(server: RunningServer, lines: io.StringIO) -> None:
    identity, caller = await server.agent()
    (made,) = await server.create(entry("/w", identity.path))
    params = [pb.NewX509SVIDParams(entry_id=made.id, csr=make_csr())]
    await caller.svids.BatchNewX509SVID(pb.BatchNewX509SVIDRequest(params=params))
    assert told(lines, "X.509-SVIDs refused") == []


async def test_a_refused_token_is_logged_and_counted(server: RunningServer, lines: io.StringIO) -> None:
    before = count("burgee_issue_failed_total", kind="jwt", reason="AUDIENCE_TOO_LONG")
    with refused(Code.INVALID_ARGUMENT, reason="AUDIENCE_TOO_LONG"):
        await server.local.svids.MintJWTSVID(pb.MintJWTSVIDRequest(id=spiffe_id("/m"), audience=["x" * 100_000]))
    assert count("burgee_issue_failed_total", kind="jwt", reason="AUDIENCE_TOO_LONG") == before + 1
    (line,) = told(lines, "rpc refused")
    assert (line["reason"], line["method"]) == (
        "AUDIENCE_TOO_LONG",
        "/spire.api.server.svid.v1.SVID/MintJWTSVID",
    )


async def test_a_life_that_is_cut_short_is_logged_and_counted(server: RunningServer, lines: io.StringIO) -> None:
    month = 30 * 86400
    before = {k: count("burgee_issue_capped_total", kind=k, reason="AUTHORITY_EXPIRES") for k in ("x509", "jwt")}
    csr = make_csr(uris=["spiffe://example.org/m"])
    await server.local.svids.MintX509SVID(pb.MintX509SVIDRequest(csr=csr, ttl=month))
    await server.local.svids.MintJWTSVID(pb.MintJWTSVIDRequest(id=spiffe_id("/m"), audience=["x"], ttl=month))
    found = told(lines, "life cut short")
    assert [(line["kind"], line["reason"], line["longest_asked_seconds"]) for line in found] == [
        ("x509", "AUTHORITY_EXPIRES", month),
        ("jwt", "AUTHORITY_EXPIRES", month),
    ]
    for kind, number in before.items():
        assert count("burgee_issue_capped_total", kind=kind, reason="AUTHORITY_EXPIRES") == number + 1


async def test_requests_over_http_have_ids_and_their_refusals_a_reason(
    server: RunningServer, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert (await over_tls(server, "/v1/status"))[0] == 403
    denied = told(lines, "request refused")
    assert [line["reason"] for line in denied] == ["TIER", "TIER"]
    ids = [line["request_id"] for line in denied]
    assert all(REQUEST_ID.fullmatch(found) for found in ids)
    assert len(set(ids)) == 2

    def broken(*_: Any) -> None:
        raise RuntimeError("secret cause")

    monkeypatch.setattr("ca.api.rest.status_document", broken)
    code, body = await locally(server, "/v1/status")
    (line,) = told(lines, "request failed")
    assert (code, line["reason"]) == (500, "INTERNAL")
    assert body["detail"] == f"internal error (request {line['request_id']})"
