"""Bodies of requests: bounded before they are parsed, parsed beside the loop, and with the place of each value."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from ca.api.policy.media import JSON, YAML, media_type
from ca.api.policy.models import PATTERN_WORDS
from ca.api.policy.pointers import pointer_of, steps_of
from ca.api.policy.refusals import Fault, Faulty, HttpRefusal
from ca.api.policy.strict_json import PLACED_BYTES, check_value, malformed, not_utf8, read_json
from policy.documents import Node, read
from policy.problems import Refused

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from starlette.requests import Request

OBJECT_BYTES = 4 << 20
"""One object, or a patch of one."""
MANY_BYTES = 16 << 20
"""Many changes at once."""
QUESTION_BYTES = 1 << 20
"""A question about one request; a grant; the invariants."""
DROPPED_BYTES = 32 << 20
"""What is larger than it may be, and not larger than this, is read all the same."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Body:
    """What was sent: its media type, its bytes and its value."""

    media: str
    data: bytes
    value: Any


async def read_body(request: Request, *, accepted: Sequence[str] = (JSON,), most: int = OBJECT_BYTES) -> Body:
    """The body of a request. Raises HttpRefusal (413, 415), Faulty (BODY_MALFORMED)."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    media = media_type(request.headers.get("content-type", ""), accepted, encoding=encoding)
    data = await _bytes(request, most)
    try:
        value = await asyncio.to_thread(_yaml if media == YAML else read_json, data)
    except Faulty as error:
        if all(fault.line or not fault.pointer for fault in error.faults):
            raise
        raise await located(Body(media, data, None), error) from None
    return Body(media, data, value)


async def read_text(request: Request, *, most: int = QUESTION_BYTES) -> str:
    """A body of YAML as it is. Raises HttpRefusal, Faulty (BODY_MALFORMED)."""
    data = await _bytes(request, most)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    if "\0" in text:
        raise malformed("P001", "a text with NUL")
    return text


async def read_model(request: Request, model: type[M], *, most: int = QUESTION_BYTES) -> M:
    """A JSON body as a model. Raises HttpRefusal, Faulty (BODY_MALFORMED, BODY_INVALID)."""
    return await validated(await read_body(request, most=most), model)


async def validated(body: Body, model: type[M]) -> M:
    """A body's value as a model. Raises Faulty (BODY_INVALID)."""
    try:
        return model.model_validate(body.value)
    except ValidationError as error:
        raise await located(body, invalid(error)) from None


def invalid(error: ValidationError) -> Faulty:
    """What pydantic found, with JSON pointers."""
    found = error.errors(include_url=False, include_input=False)
    faults = [Fault(code=one["type"].upper(), detail=_words(one), pointer=pointer_of(one["loc"])) for one in found]
    return Faulty("the body is not what is asked for", faults, reason="BODY_INVALID")


def _words(found: ErrorDetails) -> str:
    """pydantic's, but for patterns: what they are for says more than they do."""
    return PATTERN_WORDS.get(found.get("ctx", {}).get("pattern", ""), found["msg"][:300])


async def located(body: Body, error: Faulty) -> Faulty:
    """The same refusal, with the lines and columns of what its pointers lead to; of a large body pointers must do."""
    if len(body.data) > PLACED_BYTES:
        return error
    faults = await asyncio.to_thread(with_places, body, error.faults)
    return Faulty(error.detail, faults, reason=error.reason, hint=error.hint)


def with_places(body: Body, faults: Iterable[Fault]) -> list[Fault]:
    """Faults with the lines and columns of what their pointers lead to."""
    try:
        documents = read(body.data, "")
    except Refused as error:
        found = error.problems[0]
        line, column = found.origin.line, found.origin.column
        return [replace(one, line=line, column=column) if one.code == found.code else one for one in faults]
    return [_placed(documents, fault) for fault in faults]


def _placed(documents: Sequence[Node], fault: Fault) -> Fault:
    node = documents[0] if documents else Node(None)
    for step in steps_of(fault.pointer):
        inner = _inside(node, step)
        if inner is None:
            break
        node = inner
    return replace(fault, line=node.line, column=node.column)


def _inside(node: Node, step: str) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(step)
    if isinstance(node.value, list) and step.isdecimal() and len(step) < 8 and int(step) < len(node.value):
        return node.value[int(step)]
    return None


async def _bytes(request: Request, most: int) -> bytes:
    """What is too large is read to its end and dropped, so that the client hears why; unless it is far too large."""
    from starlette.requests import ClientDisconnect

    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 18 or int(declared) > DROPPED_BYTES:
        raise _too_large(most, hang_up=True)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > DROPPED_BYTES:
                raise _too_large(most, hang_up=True)
            if size > most:
                parts.clear()
            else:
                parts.append(part)
    except ClientDisconnect:
        raise malformed("P001", "the body ends before its end") from None
    if size > most:
        raise _too_large(most, hang_up=False)
    return b"".join(parts)


def _too_large(most: int, *, hang_up: bool) -> HttpRefusal:
    return HttpRefusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {most >> 10} KiB",
        reason="BODY_TOO_LARGE",
        hint="send less at once",
        headers={"Connection": "close"} if hang_up else {},
    )


def _yaml(data: bytes) -> Any:
    """One document of YAML, without places."""
    try:
        documents = read(data, "")
    except Refused as error:
        one = error.problems[0]
        place = one.origin
        raise malformed(one.code, one.message, line=place.line, column=place.column, hint=one.hint) from None
    if len(documents) != 1:
        raise malformed("P001", f"{len(documents)} documents where one is asked for")
    value = _plain(documents[0])
    check_value(value)
    return value


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {name: _plain(inner) for name, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(inner) for inner in node.value]
    return node.value
