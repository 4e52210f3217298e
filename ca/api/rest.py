"""The REST face: the same callers and the same tier table as gRPC, over HTTP/1.1 on the same port and socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ca.api.access import Access
from ca.api.policy.refusals import Fault, Faulty, HttpRefusal, problem_document
from ca.errors import BurgeeError, Internal, NotFound
from ca.proto.burgee import admin_pb2
from ca.runtime import log

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from ca.api.policy.parts import PolicyParts

logger = log.get("rest")

PROBLEM = "application/problem+json"


def application(
    *, version: str, access: Access, status: Callable[[], admin_pb2.Status], policy: PolicyParts | None = None
) -> FastAPI:
    """The application. Every route, those that are added later too, needs a row in the tier table.

    FastAPI is imported here: most servers are never asked over HTTP.
    """
    from fastapi import Depends, FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    app = FastAPI(
        title="Burgee",
        version=version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(admission(access))],
        exception_handlers={
            BurgeeError: _refuse,
            RequestValidationError: _invalid,
            HTTPException: _unrouted,
            Exception: _fail,
        },
    )

    async def show_version() -> dict[str, str]:
        return {"name": "burgee", "version": version}

    async def show_status() -> dict[str, Any]:
        return status_document(status())

    app.get("/version")(show_version)
    app.get("/v1/status")(show_status)
    if policy is not None:
        from ca.api.policy.rest import mount

        mount(app, policy)
    return app


def admission(access: Access) -> Callable[[Any], Any]:
    """A dependency that admits the caller of a route, or raises; afterwards `current_caller` knows it."""
    from starlette.requests import Request

    async def admitted(request: Any) -> None:
        log.new_request_id()
        method = f"{request.method} {request.scope['route'].path_format}"
        await access.admit(method, request.scope["burgee.peer"])

    admitted.__annotations__["request"] = Request  # FastAPI asks for the type, which nobody else has imported yet
    return admitted


def status_document(status: admin_pb2.Status) -> dict[str, Any]:
    """The server's state as JSON; times as RFC 3339."""
    return {
        "trust_domain": status.trust_domain,
        "version": status.version,
        "started_at": datetime.fromtimestamp(status.started_at, UTC).isoformat().replace("+00:00", "Z"),
        "ready": status.ready,
        "problems": [{"reason": p.reason, "detail": p.detail, "hint": p.hint} for p in status.problems],
        "store_epoch": status.store_epoch,
        "revision": status.revision,
        "connected_agents": status.connected_agents,
    }


def problem(error: BurgeeError) -> Response:
    """An error as RFC 9457 has it, with our reason and hint beside."""
    from starlette.responses import Response

    status, body, headers = problem_document(error)
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(data, status_code=status, media_type=PROBLEM, headers=headers)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, BurgeeError)
    logger.info("request refused", path=request.url.path, reason=error.reason, detail=error.detail)
    return problem(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """What FastAPI says of parameters."""
    found: Any = error
    faults = [
        Fault(code=str(one["type"]).upper(), detail=str(one["msg"])[:300], parameter=" ".join(map(str, one["loc"])))
        for one in found.errors()
    ]
    return await _refuse(request, Faulty("a parameter is not what is asked for", faults, reason="REQUEST_INVALID"))


async def _unrouted(request: Request, error: Exception) -> Response:
    """What Starlette says of paths and verbs that are not there."""
    verbs = _verbs(request)
    if verbs:
        status, reason, detail = HTTPStatus.METHOD_NOT_ALLOWED, "NO_SUCH_VERB", "this path does not know the verb"
        return await _refuse(request, HttpRefusal(status, detail, reason=reason, headers={"Allow": ", ".join(verbs)}))
    return await _refuse(request, NotFound("there is nothing at this path", reason="NO_SUCH_PATH"))


def _verbs(request: Request) -> list[str]:
    """Those that the path knows (RFC 9110 §10.2.1)."""
    from starlette.routing import Match, Route

    routes = [route for route in request.app.routes if isinstance(route, Route)]
    known = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({verb for route in known for verb in route.methods or ()})


async def _fail(request: Request, error: Exception) -> Response:
    logger.error("request failed", path=request.url.path, reason=Internal.reason, exc_info=error)
    return problem(Internal(f"internal error (request {log.request_id.get()})"))
