"""The proof that policies decide: one call allowed and one refused by the sidecar, and the same by the gateway.

Each decision is looked up in the agent's log, by the ID that the caller was told, and explained by the server.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ca.errors import NotFound, Unavailable
from ca.up import admin, http, policies
from ca.up.envoy_policy import ASKED, PUSHED
from ca.up.layout import Layout
from ca.up.options import SERVICES, Options
from ca.up.ports import LOOPBACK
from ca.up.report import Decided

DECISION = "x-burgee-decision"
"""The header that tells a caller the ID of a decision."""
_ALLOWED, _REFUSED = 200, 403
_LOG_SECONDS, _POLL_SECONDS = 3.0, 0.02


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way from web to api. `hops` are pairs of who is called and who calls; the first is the one that is looked at,
    and decides as `source` says."""

    source: str
    url: str
    hops: tuple[tuple[str, str], ...]

    @property
    def target(self) -> str:
        return self.hops[0][0]

    @property
    def caller(self) -> str:
        return _principal(self.hops[0][1])


def ways(options: Options, *, direct: str, through_gateway: str) -> tuple[Way, Way]:
    """The two."""
    web, api, gateway = (str(options.service_id(name)) for name in SERVICES)
    return (
        Way(source=PUSHED, url=direct, hops=((api, web),)),
        Way(source=ASKED, url=through_gateway, hops=((gateway, web), (api, gateway))),
    )


async def decided(way: Way, path: str, layout: Layout) -> Decided:
    """One call. Raises Unavailable unless it was decided as the server's policies say, and is on record."""
    host, port = way.url.removeprefix("http://").rstrip("/").split(":")
    answer = await http.get((host, int(port)), path)
    record = await _record(layout.agent_admin_socket, answer, way)
    allowed = [await _allowed(layout.server_admin_socket, *hop, path) for hop in way.hops]
    expected = {"source": way.source, "target": way.target, "principal": way.caller, "path": path}
    found = {name: record.get(name) for name in (*expected, "allowed")}
    if found != expected | {"allowed": allowed[0]} or answer.status != (_ALLOWED if all(allowed) else _REFUSED):
        why = f"{record.get('reason')} {record.get('detail', '')}".rstrip()
        raise Unavailable(f"GET {path} was answered {answer.status}, policies say {allowed}: {found}, {why}")
    return Decided(
        source=way.source,
        target=way.target,
        url=way.url.rstrip("/") + path,
        status=answer.status,
        allowed=allowed[0],
        decision=record["id"],
        revision=record["revision"],
        explanation=await policies.explanation(layout.server_admin_socket, record),
    )


async def _allowed(socket: Path, target: str, caller: str, path: str) -> bool:
    here = {"source_ip": LOOPBACK, "remote_ip": LOOPBACK}
    asked = {"principal": _principal(caller), "method": "GET", "path": path, "host": http.HOST, **here}
    return await policies.allowed(socket, target, asked)


async def _record(socket: Path, answer: http.Response, way: Way) -> dict[str, Any]:
    told = answer.headers.get(DECISION, "")
    if not told:
        raise Unavailable(f"{way.target}'s Envoy answered {answer.status} and told no decision")
    found = await _logged(socket, told)
    if not found.get("revision"):
        raise Unavailable(f"{way.target}'s Envoy has no policies yet: {found.get('reason')}")
    return found


async def _logged(socket: Path, decision: str) -> dict[str, Any]:
    """The record, for which a proxy's log may take a moment. Raises NotFound."""
    deadline = time.monotonic() + _LOG_SECONDS
    while True:
        try:
            found: dict[str, Any] = json.loads(await admin.decision(socket, decision))
        except NotFound:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return found


def _principal(spiffe_id: str) -> str:
    return spiffe_id.removeprefix("spiffe://")
