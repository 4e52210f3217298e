"""The proof of the demo fails unless each call was decided as policies say; what is ours at the server is put right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ca.errors import FailedPrecondition, Unavailable
from ca.identity.spiffe_id import TrustDomain
from ca.up import calls, http, policies
from ca.up.layout import Layout
from ca.up.options import Options
from tests.support.server import running_server

OPTIONS = Options(trust_domain=TrustDomain("example.org"))
LAYOUT = Layout(home=Path("/nonexistent"), run=Path("/nonexistent"))
DIRECT, THROUGH = calls.ways(OPTIONS, direct="http://127.0.0.1:1/", through_gateway="http://127.0.0.1:2/")
RECORD = {
    "id": "api-1",
    "source": "pushed",
    "target": "spiffe://example.org/api",
    "principal": "example.org/web",
    "path": "/hello",
    "allowed": True,
    "revision": 3,
}
ASKED = RECORD | {"source": "ext_authz", "target": "spiffe://example.org/gateway"}


def world(
    monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], *, status: int, headers: Any, allowed: dict[str, bool]
) -> None:
    """What the Envoy answers, the agent has on record, and the server says of each target."""

    async def get(*_: Any) -> http.Response:
        return http.Response(status=status, headers=headers, body=b"")

    async def decision(_: Path, told: str) -> bytes:
        assert told == record["id"]
        return json.dumps(record).encode()

    async def says(_: Path, target: str, request: Any) -> bool:
        return allowed[f"{request['principal']} {target}"]

    async def explanation(*_: Any) -> str:
        return "because"

    monkeypatch.setattr(calls.http, "get", get)
    monkeypatch.setattr(calls.admin, "decision", decision)
    monkeypatch.setattr(calls.policies, "allowed", says)
    monkeypatch.setattr(calls.policies, "explanation", explanation)


TOLD = {"x-burgee-decision": "api-1"}
YES = {
    "example.org/web spiffe://example.org/api": True,
    "example.org/web spiffe://example.org/gateway": True,
    "example.org/gateway spiffe://example.org/api": True,
}
NO_API = YES | {"example.org/gateway spiffe://example.org/api": False}
NO = dict.fromkeys(YES, False)


@pytest.mark.parametrize(
    ("way", "record", "status", "allowed"),
    [
        (DIRECT, RECORD, 200, YES),
        (DIRECT, RECORD | {"allowed": False}, 403, NO),
        (THROUGH, ASKED, 200, YES),
        (THROUGH, ASKED, 403, NO_API),
        (THROUGH, ASKED | {"allowed": False}, 403, NO),
    ],
)
async def test_what_was_decided_as_policies_say_is_told(
    monkeypatch: pytest.MonkeyPatch, way: calls.Way, record: dict[str, Any], status: int, allowed: dict[str, bool]
) -> None:
    world(monkeypatch, record, status=status, headers=TOLD, allowed=allowed)
    told = await calls.decided(way, "/hello", LAYOUT)
    assert (told.status, told.allowed, told.decision) == (status, record["allowed"], "api-1")
    assert (told.revision, told.explanation, told.url) == (3, "because", f"{way.url}hello")


@pytest.mark.parametrize(
    ("record", "status", "headers", "allowed"),
    [
        (RECORD, 403, TOLD, YES),  # refused after it was allowed
        (RECORD, 200, TOLD, NO),  # allowed what policies refuse
        (RECORD | {"allowed": False}, 403, TOLD, YES),
        (RECORD, 200, {}, YES),  # nobody decided
        (RECORD | {"source": "ext_authz"}, 200, TOLD, YES),
        (RECORD | {"target": "spiffe://example.org/web"}, 200, TOLD, YES),
        (RECORD | {"principal": "example.org/other"}, 200, TOLD, YES),
        ({**RECORD, "revision": None}, 200, TOLD, YES),  # before any policy came
    ],
)
async def test_anything_else_fails(
    monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], status: int, headers: Any, allowed: dict[str, bool]
) -> None:
    world(monkeypatch, record, status=status, headers=headers, allowed=allowed)
    with pytest.raises(Unavailable):
        await calls.decided(DIRECT, "/hello", LAYOUT)


async def test_what_is_ours_is_put_right_and_what_is_others_is_left(tmp_path: Path) -> None:
    async with running_server() as server:
        socket = server.config.admin_socket_path
        assert await policies.ensure(socket, OPTIONS) == 1
        assert await policies.ensure(socket, OPTIONS) == 1, "nothing to do"
        api = f"spiffe://{OPTIONS.trust_domain}/api"
        hello = {"principal": "example.org/web", "method": "GET", "path": "/hello"}
        assert await policies.allowed(socket, api, hello)
        assert not await policies.allowed(socket, api, hello | {"path": "/admin"})

        *_, policy = policies.objects(OPTIONS)
        spoilt = policy | {"spec": {}}
        await _apply(socket, spoilt, policies.OWNER)
        assert not await policies.allowed(socket, api, hello)
        assert await policies.ensure(socket, OPTIONS) == 3
        assert await policies.allowed(socket, api, hello)

        await _apply(socket, spoilt, "somebody")
        assert await policies.ensure(socket, OPTIONS) == 4
        assert not await policies.allowed(socket, api, hello), "it is theirs now"


async def test_a_refusal_of_the_server_is_told_as_it_is() -> None:
    async with running_server() as server:
        with pytest.raises(FailedPrecondition) as caught:
            await policies.allowed(server.config.admin_socket_path, "nonsense", {})
    assert caught.value.reason == "BODY_INVALID"


async def _apply(socket: Path, document: dict[str, Any], owner: str) -> None:
    name = f"/v1/policy/authorization-policies/demo/{document['metadata']['name']}"
    etag = (await http.get(socket, name)).headers["etag"].strip('"')
    changes = [{"object": document, "if_match": etag, "force": True}]
    answer = await http.post(socket, "/v1/policy/apply", {"changes": changes, "owner": owner})
    assert answer.status == 200, answer.body
