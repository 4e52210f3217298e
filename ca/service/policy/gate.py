"""What is looked at before a write is made: invariants, always; and, for who rehearses it, lint and what it changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ca.errors import InvalidArgument
from ca.service.policy.grants import Rights
from ca.service.policy.refusals import InvariantBroken
from policy.findings import Finding
from policy.state import State


def check_invariants(text: str, state: State) -> None:
    """Raises InvariantBroken, with every one that would not hold."""
    if not text:
        return
    violations = _violations(text, state)
    if violations:
        raise InvariantBroken(violations)


def read_invariants(text: str) -> None:
    """Raises InvalidArgument INVARIANTS_INVALID for what is none."""
    raise InvalidArgument("invariants are not read yet", reason="INVARIANTS_INVALID")


def findings(state: State, rights: Rights) -> tuple[Finding, ...]:
    """What lint says of a revision, as far as the caller may read it."""
    found: Iterable[Finding] = ()
    return tuple(finding for finding in found if rights.may_read(finding.key.partition("/")[0]))


def difference(before: State, after: State) -> Any:
    """What would be decided otherwise."""
    return None


def _violations(text: str, state: State) -> tuple[Any, ...]:
    return ()
