"""What the book of policies refuses, as members of the one error family that carry what was found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ca.errors import BurgeeError, Code, Denied, FailedPrecondition, InvalidArgument
from policy.book_values import Key
from policy.model import Origin
from policy.problems import Problem

SHOWN = 3


class PolicyInvalid(InvalidArgument):
    """Objects that are none; `problems` are all that was found."""

    reason = "POLICY_INVALID"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        said = "; ".join(map(str, self.problems[:SHOWN]))
        more = len(self.problems) - SHOWN
        super().__init__(f"{said}; and {more} more" if more > 0 else said)


class Conflict(BurgeeError):
    """What is there, or what must hold, is against it."""

    code = Code.ABORTED
    reason = "POLICY_CONFLICT"


class InvariantBroken(Conflict):
    """Something would be allowed that never must be; `violations` have a request that would be, and the rule."""

    reason = "INVARIANT_BROKEN"

    def __init__(self, violations: Iterable[Any]) -> None:
        self.violations = tuple(violations)
        said = "; ".join(map(str, self.violations[:SHOWN]))
        super().__init__(
            f"an invariant would not hold: {said}",
            hint="change the rule, or, as an admin, the invariants; nothing was written",
        )


def invalid(key: Key, code: str, message: str, *, pointer: str = "", hint: str = "") -> PolicyInvalid:
    """One thing that is wrong with one object."""
    return PolicyInvalid([Problem(code, message, Origin(str(key)), pointer, hint)])


def forbidden(what: str, missing: str) -> Denied:
    """`missing` says which grant would do."""
    return Denied(
        f"you may not {what}: it needs {missing}",
        reason="POLICY_FORBIDDEN",
        hint="an admin of policies gives grants; `policy.admins` of the server's configuration names the first ones",
    )


def changed(what: str) -> FailedPrecondition:
    """Somebody was faster."""
    return FailedPrecondition(
        f"{what} was changed meanwhile", reason="POLICY_CHANGED", hint="read it again, and write what follows from that"
    )
