"""CEL conditions of rules: type-checked when they are written, compiled once, bounded in depth, in steps and in cost.

A condition that fails while it is evaluated (a missing key, a division by zero) does not hold for ALLOW rules and holds
for all others, so that a failure never allows more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from policy.cel_cost import cost_of, patterns_of
from policy.model import Action, Request

if TYPE_CHECKING:
    from cel_expr_python import cel

MAX_LENGTH = 4096
Condition = Callable[[Request], bool | None]
"""Whether it holds; None where it failed."""


def _segment(principal: str | None, mark: str) -> str:
    """What follows `/<mark>/` in a SPIFFE ID."""
    parts = (principal or "").split("/")[1:]
    return next((after for name, after in zip(parts[::2], parts[1::2], strict=False) if name == mark), "")


def _request_principal(request: Request) -> str:
    claims = request.claims or {}
    issuer, subject = claims.get("iss"), claims.get("sub")
    return f"{issuer}/{subject}" if isinstance(issuer, str) and isinstance(subject, str) else ""


VARIABLES: dict[str, tuple[str, Callable[[Request], Any]]] = {
    "source.principal": ("string", lambda r: r.principal or ""),
    "source.namespace": ("string", lambda r: _segment(r.principal, "ns")),
    "source.serviceAccount": ("string", lambda r: _segment(r.principal, "sa")),
    "source.trustDomain": ("string", lambda r: (r.principal or "").partition("/")[0]),
    "source.ip": ("string", lambda r: r.source_ip or ""),
    "remote.ip": ("string", lambda r: r.remote_ip or ""),
    "destination.ip": ("string", lambda r: r.destination_ip or ""),
    "destination.port": ("int", lambda r: r.destination_port or 0),
    "connection.sni": ("string", lambda r: r.sni or ""),
    "request.host": ("string", lambda r: r.host or ""),
    "request.method": ("string", lambda r: r.method or ""),
    "request.path": ("string", lambda r: r.path or ""),
    "request.headers": (
        "map of string to string",
        lambda r: {name: v for name, v in r.headers.items() if name[:1] != ":"},
    ),
    "request.auth.principal": ("string", _request_principal),
    "request.auth.claims": ("map of string to anything", lambda r: dict(r.claims or {})),
}
"""Name → type and how it is read. A text that is absent is empty, a number 0, a map empty."""


class ConditionError(ValueError):
    """An expression that is none, or whose type is not bool."""


@cache
def _environment() -> cel.Env:
    from cel_expr_python import cel  # large, and most policies have no condition

    types = {
        "string": cel.Type.STRING,
        "int": cel.Type.INT,
        "map of string to string": cel.Type.Map(cel.Type.STRING, cel.Type.STRING),
        "map of string to anything": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
    }
    return cel.NewEnv(variables={name: types[kind] for name, (kind, _) in VARIABLES.items()})


def check(expression: str) -> None:
    """Raises ConditionError, in the compiler's words, unless the expression is one of type bool."""
    compiled(expression)


@lru_cache(maxsize=4096)
def compiled(expression: str) -> Condition:
    """The condition that an expression is."""
    if len(expression) > MAX_LENGTH:
        raise ConditionError(f"a condition has at most {MAX_LENGTH} characters")
    from cel_expr_python import cel

    try:
        program = _environment().compile(expression)
    except RuntimeError as error:
        raise ConditionError(_said(str(error))) from None
    if program.return_type() != cel.Type.BOOL:
        raise ConditionError(f"a condition must be of type bool, this is {program.return_type().name()}")
    cost = cost_of(expression)
    if cost.grows:
        raise ConditionError("`+` cannot stand beside a loop: texts would double with each")
    for pattern in patterns_of(expression):
        found = _environment().compile(f"''.matches({pattern})").eval(data={}).value()
        if not isinstance(found, bool):
            raise ConditionError(_said(str(found)))
    used = {name: read for name, (_, read) in VARIABLES.items() if name.rpartition(".")[2] in expression}

    def condition(request: Request) -> bool | None:
        data = {name: read(request) for name, read in used.items()}
        if cost.too_much(data):
            return None
        try:
            value = program.eval(data=data).value()
        except (RuntimeError, TypeError, ValueError):
            return None
        return value if isinstance(value, bool) else None

    return condition


def holds(expression: str, action: Action, request: Request) -> bool:
    """Whether a rule's condition holds; one that fails holds unless the rule allows."""
    answer = compiled(expression)(request)
    return action is not Action.ALLOW if answer is None else answer


def _said(error: str) -> str:
    """The compiler's first sentence, without its prefix and the line it shows."""
    return error.removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ").partition("\n")[0][:300]
