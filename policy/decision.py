"""What was decided, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why; every one is a row in the language reference."""

    DENIED_BY_RULE = "DENIED_BY_RULE"
    """A rule of a DENY policy matched."""
    ALLOWED_BY_RULE = "ALLOWED_BY_RULE"
    """No DENY rule matched, and a rule of an ALLOW policy did."""
    NOTHING_ALLOWS = "NOTHING_ALLOWS"
    """No rule of an ALLOW policy matched, of which there may be none at all."""
    NAMESPACE_IS_OPEN = "NAMESPACE_IS_OPEN"
    """No ALLOW policy is for the target, and its namespace has Istio's default."""
    NO_PROVIDER = "NO_PROVIDER"
    """A rule of a CUSTOM policy matched, whose provider is not configured."""
    UNKNOWN_TARGET = "UNKNOWN_TARGET"
    """Nobody described the workload that is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One verdict. `policy` and `rule` (from 0) are the decisive ones; None where none was.

    With `providers`, each of them must agree besides: `allowed` is what holds if they do. `shadow` is the verdict that
    would hold if the target's shadow policies were enforced; None where it has none.
    """

    allowed: bool
    reason: Reason
    policy: str | None = None
    rule: int | None = None
    providers: tuple[str, ...] = ()
    shadow: Decision | None = None
