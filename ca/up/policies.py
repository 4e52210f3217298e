"""The demo's policy: put to the server over REST, as any operator would do it, and asked about there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ca.errors import FailedPrecondition, Unavailable
from ca.up import http
from ca.up.options import SERVICES, Options

OWNER = "burgee-up"
"""Marks what is ours to correct; what a person wrote or took over is left alone."""
NAMESPACE = "demo"
ALLOWED_PATH, REFUSED_PATH = "/hello", "/admin"
_SERVES = {"serves": "hello"}
"""The label of those that the policy is for: one policy for the sidecar and the gateway."""
_PREFIX = "/v1/policy"
_PATHS = {"Workload": "workloads", "AuthorizationPolicy": "authorization-policies"}
_OK, _NOT_FOUND = 200, 404

Document = Mapping[str, Any]


def objects(options: Options) -> list[dict[str, Any]]:
    """web may GET /hello of whoever serves it, and so may the gateway, which calls api in web's place."""
    callers = [str(options.service_id(name)).removeprefix("spiffe://") for name in ("web", "gateway")]
    rule = {
        "from": [{"source": {"principals": callers}}],
        "to": [{"operation": {"methods": ["GET"], "paths": [ALLOWED_PATH]}}],
    }
    return [
        *(_workload(name, str(options.service_id(name))) for name in SERVICES),
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "hello", "namespace": NAMESPACE},
            "spec": {"selector": {"matchLabels": _SERVES}, "rules": [rule]},
        },
    ]


def _workload(name: str, spiffe_id: str) -> dict[str, Any]:
    labels = {"app": name} | ({} if name == "web" else _SERVES)
    return {
        "apiVersion": "burgee.io/v1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"spiffeId": spiffe_id},
    }


async def ensure(socket: Path, options: Options) -> int:
    """Create what is missing and correct what of ours differs, as one revision; returns the newest.

    Raises Unavailable, FailedPrecondition where the server refuses.
    """
    changes = [change for wanted in objects(options) if (change := await _change(socket, wanted))]
    if changes:
        asked = {"changes": changes, "owner": OWNER, "note": "the demo of burgee up"}
        _document(await http.post(socket, f"{_PREFIX}/apply", asked))
    revisions = _document(await http.get(socket, f"{_PREFIX}/revisions?limit=1"))["items"]
    return int(revisions[0]["number"]) if revisions else 0


async def _change(socket: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    name = f"{_PATHS[wanted['kind']]}/{NAMESPACE}/{wanted['metadata']['name']}"
    answer = await http.get(socket, f"{_PREFIX}/{name}")
    if answer.status == _NOT_FOUND:
        return {"object": wanted, "must_be_new": True}
    if _document(answer) == wanted or answer.headers.get("burgee-owner") != OWNER:
        return None
    return {"object": wanted, "if_match": answer.headers["etag"].strip('"')}


async def allowed(socket: Path, target: str, request: Document) -> bool:
    """Whether the newest revision allows it."""
    found = _document(await http.post(socket, f"{_PREFIX}/evaluate", {"target": target, "request": request}))
    return bool(found["decision"]["allowed"])


async def explanation(socket: Path, record: Document) -> str:
    """Why a recorded decision is as it is, by the revision that made it."""
    names = ("principal", "source_ip", "remote_ip", "destination_ip", "method", "path", "host", "headers")
    request = {name: record[name] for name in names if name in record}
    request |= {"destination_port": record["port"]} if "port" in record else {}
    asked = {"target": record["target"], "request": request, "revision": record["revision"]}
    return str(_document(await http.post(socket, f"{_PREFIX}/explain", asked))["text"])


def _document(answer: http.Response) -> Any:
    try:
        found = json.loads(answer.body)
    except ValueError as error:
        raise Unavailable(f"the server answered {answer.status} and no JSON") from error
    if answer.status != _OK:
        problem = found if isinstance(found, dict) else {}
        raise FailedPrecondition(
            str(problem.get("detail") or f"the server answered {answer.status}"),
            reason=str(problem.get("reason") or "SERVER_ANSWER"),
            hint=str(problem.get("hint") or ""),
        )
    return found
