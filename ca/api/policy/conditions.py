"""What the conditional headers of a request ask for."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from ca.api.policy.etags import Tags, parse_tags
from ca.api.policy.refusals import Fault, Faulty, HttpRefusal
from ca.errors import AlreadyExists, BurgeeError
from ca.service.policy.refusals import changed

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Condition:
    """For a change: `if_match` is the tag that what is there must still have; None where nothing may be there.
    `said` whether the caller said so; who says nothing may only create."""

    if_match: str | None
    said: bool

    @property
    def must_be_new(self) -> bool:
        return self.if_match is None

    def refusal(self, error: AlreadyExists) -> BurgeeError:
        """What the caller is told where something is there (RFC 6585 §3, RFC 9110 §13.1.2)."""
        return changed("what is there") if self.said else unsaid()


def for_write(request: Request, etag: str | None) -> Condition:
    """What may be changed so; `etag` is that of what is there now, None where nothing is. It is looked at only where a
    caller names several tags or any, so that the same request asks for the same a second time.

    Raises FailedPrecondition (412), Faulty.
    """
    wanted, unwanted = _tags(request, "if-match"), _tags(request, "if-none-match")
    if wanted is None:
        if unwanted is not None and not unwanted.any:
            raise _header("if-none-match", "of a change, this is `*` or nothing")
        return Condition(None, unwanted is not None)
    if unwanted is not None:
        raise _header("if-none-match", "not together with `If-Match`")
    if len(wanted.strong) == 1 and not wanted.any:
        return Condition(next(iter(wanted.strong)), True)
    if etag is None or not wanted.match(etag):
        raise changed("what is there")
    return Condition(etag, True)


def for_change(request: Request, etag: str | None) -> Condition:
    """The same of what must be there already. Raises HttpRefusal (428) besides."""
    condition = for_write(request, etag)
    if condition.if_match is None:
        raise unsaid()
    return condition


def unchanged(request: Request, etag: str) -> bool:
    """For a read: whether the caller has it already (304)."""
    known = _tags(request, "if-none-match")
    return known is not None and known.name(etag)


def idempotency_key(request: Request) -> str:
    """Of the header `Idempotency-Key`; "" without one. Raises Faulty."""
    key = request.headers.get("idempotency-key", "")
    if len(key) <= 255 and all("!" <= character <= "~" for character in key):
        return key
    raise _header("idempotency-key", "at most 255 printable ASCII characters without spaces")


def unsaid() -> HttpRefusal:
    """428."""
    return HttpRefusal(
        HTTPStatus.PRECONDITION_REQUIRED,
        "a change of what is there needs `If-Match`",
        reason="IF_MATCH_MISSING",
        hint="get it, and send its `ETag` as `If-Match`",
    )


def _tags(request: Request, name: str) -> Tags | None:
    if name not in request.headers:
        return None
    try:
        return parse_tags(", ".join(request.headers.getlist(name)))
    except ValueError as error:
        raise _header(name, str(error)) from None


def _header(name: str, detail: str) -> Faulty:
    fault = Fault(code="HEADER", detail=detail, parameter=f"header {name}")
    return Faulty("a header is not what is asked for", [fault], reason="REQUEST_INVALID")
