"""One error family: a detail that is safe for the caller, a stable reason code, a hint; the cause goes to the log.

`STATUS` is the only table from our codes to gRPC status numbers and HTTP status codes.
Messages: lower case, no full stop, user input in backticks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar


class Code(StrEnum):
    """Canonical codes, named as gRPC names them (google.rpc.Code)."""

    INVALID_ARGUMENT = "InvalidArgument"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NOT_FOUND = "NotFound"
    ALREADY_EXISTS = "AlreadyExists"
    PERMISSION_DENIED = "PermissionDenied"
    RESOURCE_EXHAUSTED = "ResourceExhausted"
    FAILED_PRECONDITION = "FailedPrecondition"
    ABORTED = "Aborted"
    UNIMPLEMENTED = "Unimplemented"
    INTERNAL = "Internal"
    UNAVAILABLE = "Unavailable"
    UNAUTHENTICATED = "Unauthenticated"


STATUS: dict[Code, tuple[int, int]] = {
    Code.INVALID_ARGUMENT: (3, 400),
    Code.DEADLINE_EXCEEDED: (4, 504),
    Code.NOT_FOUND: (5, 404),
    Code.ALREADY_EXISTS: (6, 409),
    Code.PERMISSION_DENIED: (7, 403),
    Code.RESOURCE_EXHAUSTED: (8, 429),
    Code.FAILED_PRECONDITION: (9, 412),
    Code.ABORTED: (10, 409),
    Code.UNIMPLEMENTED: (12, 501),
    Code.INTERNAL: (13, 500),
    Code.UNAVAILABLE: (14, 503),
    Code.UNAUTHENTICATED: (16, 401),
}
"""Code → (gRPC status number, HTTP status)."""


E = TypeVar("E", bound="BurgeeError")


class BurgeeError(Exception):
    """The root of every error this project raises on purpose.

    `detail` is shown to the caller; `reason` is a stable UPPER_SNAKE code for logs, metrics and programs;
    `hint` says what to do next; `retry_after_seconds`, where it is known, how long to wait before the same call is
    worth another try. What must stay inside goes into `__cause__`. `request_id` is the id that another program gave to
    the call that it refused so.
    """

    code: Code = Code.INTERNAL
    reason: str = "INTERNAL"
    request_id: str = ""

    def __init__(
        self, detail: str, *, reason: str | None = None, hint: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.retry_after_seconds = retry_after_seconds
        if reason is not None:
            self.reason = reason


def remembered(error: E) -> E:
    """The same to keep: what it says, and what the error of ours behind it says.

    The way that an error took holds whatever was in hand there: evidence and other secrets, of any size.
    """
    kept = error.__class__.__new__(error.__class__, *error.args)
    kept.__dict__.update(error.__dict__)
    if isinstance(error.__cause__, BurgeeError):
        kept.__cause__ = remembered(error.__cause__)
    return kept


class InvalidArgument(BurgeeError):
    """The caller's input is malformed or out of bounds."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class NotFound(BurgeeError):
    """The named thing does not exist (or the caller may not know that it does)."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(BurgeeError):
    """The thing to be created exists."""

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class Denied(BurgeeError):
    """The caller is known and may not. Reasons AGENT_* travel as SPIRE's PermissionDeniedDetails."""

    code = Code.PERMISSION_DENIED
    reason = "DENIED"


class Unauthenticated(BurgeeError):
    """The caller could not be identified, or is gone."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class Exhausted(BurgeeError):
    """A stated limit was reached."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class FailedPrecondition(BurgeeError):
    """The system is not in the state the call needs."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Unavailable(BurgeeError):
    """A part we depend on is not there now; the same call may work later."""

    code = Code.UNAVAILABLE
    reason = "UNAVAILABLE"


class Unimplemented(BurgeeError):
    """Known, and not built."""

    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class Internal(BurgeeError):
    """Our own fault; the cause is in the log."""


class ConfigError(InvalidArgument):
    """The configuration is wrong: programs exit with 2 and print detail and hint."""

    reason = "CONFIG"
