"""How a route of the REST face is described once, for FastAPI, for the tier table's test and for OpenAPI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from ca.api.policy.media import JSON, preferred
from ca.api.policy.models import ProblemDocument
from policy.book_values import AUTHORIZATION, PEER, REQUEST, WORKLOAD

PROBLEM = "application/problem+json"
PREFIX = "/v1/policy"
PATHS = {
    "authorization-policies": AUTHORIZATION,
    "request-authentications": REQUEST,
    "peer-authentications": PEER,
    "workloads": WORKLOAD,
}
"""Objects' kinds, as they stand in paths."""

Headers = Mapping[str, str]
KEPT: Headers = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
"""Of every answer: what one caller is told is for nobody else, and holds until somebody writes."""


class _KindConvertor(Convertor[str]):
    """So that no other path is taken for an object's."""

    regex = "|".join(PATHS)

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("kind", _KindConvertor())


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One verb of one path. `bodies` are the media types that it reads with their models; `refusals` the statuses
    besides those that any route may answer with; `headers` those of its answer, explained. `cost` counts against the
    caller's rate."""

    verb: str
    path: str
    endpoint: Callable[..., Any]
    summary: str
    answer: type[BaseModel]
    bodies: Mapping[str, type[BaseModel] | Mapping[str, Any]] = field(default_factory=dict)
    refusals: Sequence[int] = ()
    headers: Headers = field(default_factory=dict)
    asks: Headers = field(default_factory=dict)
    """Headers of the request that it looks at, explained."""
    also: Sequence[str] = ()
    """Media types of answers besides JSON."""
    created: bool = False
    not_modified: bool = False
    cost: float = 1
    changes: bool = False
    """Of a POST, whether it changes anything."""

    @property
    def tier(self) -> str:
        """The path, as the tier table has it."""
        return PREFIX + self.path.replace(":kind}", "}")

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.changes or self.verb in ("PUT", "PATCH", "DELETE")


def add(app: FastAPI, route: Route, enter: Callable[[Route], Awaitable[None]]) -> None:
    """Adds the route to the application; `enter` is asked before each call."""

    async def entered() -> None:
        await enter(route)

    app.add_api_route(
        PREFIX + route.path,
        route.endpoint,
        methods=[route.verb],
        response_model=None,
        summary=route.summary,
        description=(route.endpoint.__doc__ or "").strip(),
        operation_id=_camel(route.summary),
        responses=_responses(route),
        openapi_extra=_extra(route),
        dependencies=[Depends(entered), Depends(_acceptable((JSON, *route.also)))],
    )


def answer(body: Any, *, status: int = 200, headers: Headers | None = None) -> Response:
    """A JSON answer."""
    data = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(data, status_code=status, media_type=JSON, headers={**KEPT, **(headers or {})})


async def large_answer(body: Any, *, status: int = 200, headers: Headers | None = None) -> Response:
    """The same of what may be megabytes, beside the loop."""
    return await asyncio.to_thread(answer, body, status=status, headers=headers)


def _camel(words: str) -> str:
    first, *more = words.replace(",", "").split()
    return first.lower() + "".join(word.capitalize() for word in more)


def _acceptable(offered: Sequence[str]) -> Callable[[Request], None]:
    """Refuses who takes nothing that is offered, before anything is done."""

    async def acceptable(request: Request) -> None:
        preferred(request.headers.get("accept"), offered)

    acceptable.__annotations__["request"] = Request
    return acceptable  # type: ignore[return-value]


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in route.headers.items()}
    good: dict[str, Any] = {"model": route.answer, "description": "Done", "headers": headers}
    if route.also:
        good["content"] = {media: {"schema": {"type": "string"}} for media in route.also}
    found: dict[int | str, dict[str, Any]] = {200: good}
    if route.created:
        found[201] = {**good, "description": "Created"}
    if route.not_modified:
        found[304] = {"description": "It still has the entity tag of `If-None-Match`", "headers": headers}
    statuses = {400, 403, 406, 429, 500, 503, *route.refusals, *((413, 415) if route.bodies else ())}
    if "{" in route.path:
        statuses.add(404)
    for status in sorted(statuses):
        found[status] = {
            "description": _SAID[status],
            "content": {PROBLEM: {"schema": {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}}},
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
    return found


def _extra(route: Route) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if route.asks:
        extra["parameters"] = [
            {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in route.asks.items()
        ]
    if route.bodies:
        content = {media: {"schema": _schema(model)} for media, model in route.bodies.items()}
        extra["requestBody"] = {"required": True, "content": content}
    return extra


def _schema(model: type[BaseModel] | Mapping[str, Any]) -> Mapping[str, Any]:
    return model if isinstance(model, Mapping) else {"$ref": f"#/components/schemas/{model.__name__}"}


_RETRY = {"Retry-After": {"description": "Seconds, where they are known.", "schema": {"type": "integer"}}}
_SAID = {
    400: "The request is malformed",
    403: "The caller may not; the grant that is missing is named",
    404: "There is no such thing",
    406: "Nothing that is had here is accepted",
    409: "It contradicts what is there",
    412: "It has another entity tag, or another revision is the newest",
    413: "The body is too large",
    415: "The body is of a type that is not read here",
    428: "A change needs `If-Match`",
    429: "Too many calls; `Retry-After` says when to come again",
    500: "Our own fault",
    503: "The store, or the audit log, cannot be reached now",
}
