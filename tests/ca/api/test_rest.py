"""The HTTP face: the same callers, the same table, errors as problem documents."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ca.api.rest import application
from ca.api.tiers import TIERS
from ca.proto.burgee import admin_pb2
from tests.ca.api.http_client import locally, over_tls
from tests.support.server import RunningServer, entry


async def test_anyone_may_ask_for_the_version(server: RunningServer) -> None:
    for status, body in (await over_tls(server, "/version"), await locally(server, "/version")):
        assert (status, body["name"]) == (200, "burgee")
    for path in ("/nope", "/docs", "/openapi.json", "/version/"):
        assert (await over_tls(server, path))[0] == 404
    assert (await over_tls(server, "/version", verb="POST"))[0] == 405


async def test_status_is_for_administrators(server: RunningServer) -> None:
    await server.create(
        entry("/boss", "/spire/agent/join_token/x", admin=True),
        entry("/down", "/spire/agent/join_token/x", downstream=True),
        entry("/w", "/spire/agent/join_token/x"),
    )
    boss = await server.mint("/boss")
    for code, body in (await locally(server, "/v1/status"), await over_tls(server, "/v1/status", boss)):
        assert code == 200
        assert (body["trust_domain"], body["ready"], body["problems"]) == ("example.org", True, [])
        assert body["revision"] == server.server.follower.revision
        assert datetime.fromisoformat(body["started_at"]).tzinfo is not None
    others = [None, await server.mint("/down"), await server.mint("/w"), (await server.agent())[0]]
    for identity in others:
        code, body = await over_tls(server, "/v1/status", identity)
        assert (code, body["status"], body["title"], body["reason"]) == (403, 403, "PermissionDenied", "TIER")
        assert "content-type: application/problem+json" in body["_head"]
        assert body["detail"] == "authorization denied for method GET /v1/status"


async def test_what_is_wrong_is_in_the_status(server: RunningServer) -> None:
    server.server.authority._signing._active.clear()  # the authority is lost
    _, body = await locally(server, "/v1/status")
    assert not body["ready"]
    assert [problem["reason"] for problem in body["problems"]] == ["NO_ACTIVE_AUTHORITY"]


def routes(app: Any) -> set[str]:
    return {f"{verb} {route.path_format}" for route in app.routes for verb in route.methods}


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    access: Any = SimpleNamespace()
    limits = SimpleNamespace(questions_per_second_per_caller=1, burst_seconds=1)
    policy: Any = SimpleNamespace(book=SimpleNamespace(held=SimpleNamespace(settings=SimpleNamespace(limits=limits))))
    app = application(version="1", access=access, status=admin_pb2.Status, policy=policy)
    assert routes(app) == {row for row in TIERS if not row.startswith("/")}


async def test_a_route_without_a_row_is_refused_to_everyone(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(TIERS, "GET /version")
    assert (await over_tls(server, "/version"))[0] == 403
    assert (await locally(server, "/version"))[0] == 403


async def test_our_own_fault_is_told_without_its_cause(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret cause")

    monkeypatch.setattr("ca.api.rest.status_document", broken)
    code, body = await locally(server, "/v1/status")
    assert (code, body["reason"]) == (500, "INTERNAL")
    assert body["detail"].startswith("internal error (request ")
    assert "secret" not in str(body)
