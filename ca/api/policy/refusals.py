"""What HTTP refuses by a status of its own, and where in a body something is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ca.errors import STATUS, BurgeeError, Code, InvalidArgument

MAX_FAULTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong in a request. `pointer` leads to it in the body (RFC 6901), or `parameter` names where
    else it is: `query limit`, `header if-match`. `line` and `column` count from 1, 0 where there are none."""

    code: str
    detail: str
    pointer: str = ""
    parameter: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON, without what is not there."""
        place = {"line": self.line, "column": self.column} if self.line else {}
        parameter = {"parameter": self.parameter} if self.parameter else {}
        hint = {"hint": self.hint} if self.hint else {}
        return {"code": self.code, "pointer": self.pointer, **parameter, **place, "detail": self.detail, **hint}


class HttpRefusal(BurgeeError):
    """A refusal whose status no canonical code has. `headers` go out with it."""

    code = Code.INVALID_ARGUMENT

    def __init__(
        self, status: HTTPStatus, detail: str, *, reason: str, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail, reason=reason, hint=hint)
        self.status = status
        self.headers = dict(headers or {})


class Faulty(InvalidArgument):
    """A request with faults, each with its place."""

    reason = "REQUEST_INVALID"

    def __init__(self, detail: str, faults: Iterable[Fault], *, reason: str, hint: str = "") -> None:
        super().__init__(detail, reason=reason, hint=hint)
        self.faults = tuple(faults)[:MAX_FAULTS]


def problem_document(error: BurgeeError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of the answer (RFC 9457), with our reason and hint beside."""
    status, title = STATUS[error.code][1], error.code.value
    headers: dict[str, str] = {}
    if isinstance(error, HttpRefusal):
        status, title, headers = error.status.value, error.status.phrase.replace(" ", ""), error.headers
    if error.retry_after_seconds is not None:
        headers = {**headers, "Retry-After": str(max(1, round(error.retry_after_seconds + 0.5)))}
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": error.detail}
    body["reason"] = error.reason
    if error.hint:
        body["hint"] = error.hint
    if faults := faults_of(error):
        body["errors"] = [fault.document() for fault in faults]
    if violations := getattr(error, "violations", ()):
        body["violations"] = [one.document() for one in violations[:MAX_FAULTS]]
    return status, body, headers


def faults_of(error: BurgeeError) -> tuple[Fault, ...]:
    """Those of an error that has any; problems of policies, too."""
    if isinstance(error, Faulty):
        return error.faults
    return tuple(
        Fault(
            code=one.code,
            detail=one.message,
            pointer=one.pointer,
            line=one.origin.line,
            column=one.origin.column,
            hint=one.hint,
        )
        for one in tuple(getattr(error, "problems", ()))[:MAX_FAULTS]
    )
