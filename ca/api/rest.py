"""The REST face: the same callers and the same tier table as gRPC, over HTTP/1.1 on the same port and socket."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ca.api.access import Access
from ca.errors import STATUS, BurgeeError, Internal
from ca.proto.burgee import admin_pb2
from ca.runtime import log

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

logger = log.get("rest")

PROBLEM = "application/problem+json"


def application(*, version: str, access: Access, status: Callable[[], admin_pb2.Status]) -> FastAPI:
    """The application. Every route, those that are added later too, needs a row in the tier table.

    FastAPI is imported here: most servers are never asked over HTTP.
    """
    from fastapi import Depends, FastAPI

    app = FastAPI(
        title="Burgee",
        version=version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(admission(access))],
        exception_handlers={BurgeeError: _refuse, Exception: _fail},
    )

    async def show_version() -> dict[str, str]:
        return {"name": "burgee", "version": version}

    async def show_status() -> dict[str, Any]:
        return status_document(status())

    app.get("/version")(show_version)
    app.get("/v1/status")(show_status)
    return app


def admission(access: Access) -> Callable[[Any], Any]:
    """A dependency that admits the caller of a route, or raises; afterwards `current_caller` knows it."""
    from starlette.requests import Request

    async def admitted(request: Any) -> None:
        log.new_request_id()
        method = f"{request.method} {request.scope['route'].path}"
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
    from starlette.responses import JSONResponse

    number = STATUS[error.code][1]
    body = {"type": "about:blank", "title": error.code.value, "status": number, "detail": error.detail}
    more = {"reason": error.reason, **({"hint": error.hint} if error.hint else {})}
    return JSONResponse({**body, **more}, status_code=number, media_type=PROBLEM)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, BurgeeError)
    logger.info("request refused", path=request.url.path, reason=error.reason, detail=error.detail)
    return problem(error)


async def _fail(request: Request, error: Exception) -> Response:
    logger.error("request failed", path=request.url.path, reason=Internal.reason, exc_info=error)
    return problem(Internal(f"internal error (request {log.request_id.get()})"))
