"""What is looked at before a write is made: invariants, always; and, for who rehearses it, lint and what it changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ca.service.policy.grants import Rights
from ca.service.policy.refusals import InvariantBroken, PolicyInvalid
from policy import invariants
from policy.book_values import AUTHORIZATION, Key
from policy.diff import Difference
from policy.diff import difference as of_snapshots
from policy.findings import Finding
from policy.lint import lint
from policy.problems import Refused
from policy.snapshot import Snapshot
from policy.state import State


@dataclass(frozen=True, slots=True)
class Holding:
    """Invariants that hold for policies, as was checked."""

    text: str
    snapshot: Snapshot


class InvariantsInvalid(PolicyInvalid):
    """A text that is no invariants."""

    reason = "INVARIANTS_INVALID"


def check_invariants(text: str, state: State, held: Holding | None = None) -> None:
    """Raises InvariantBroken, with every one that would not hold. Of targets for which the same was `held` to be so,
    and whose policies are the same, nothing is asked again."""
    if not text:
        return
    previous = held.snapshot if held is not None and held.text == text else None
    violations = invariants.check(invariants.read(text), state.snapshot, previous=previous)
    if violations:
        raise InvariantBroken(violations)


def read_invariants(text: str) -> None:
    """Raises InvariantsInvalid."""
    try:
        invariants.read(text)
    except Refused as error:
        raise InvariantsInvalid(error.problems) from None


def findings(before: State, after: State, written: Iterable[Key], rights: Rights) -> tuple[Finding, ...]:
    """What lint says of the policies that are written, beside all others, as far as the caller may read it."""
    only = {f"{key.namespace}/{key.name}" for key in written if key.kind == AUTHORIZATION}
    found = lint(after.parsed, after.mesh, after.targets, snapshot=after.snapshot, before=before.snapshot, only=only)
    return tuple(finding for finding in found if rights.may_read(finding.key.partition("/")[0]))


def difference(before: State, after: State) -> Difference:
    """What would be decided otherwise."""
    return of_snapshots(before.snapshot, after.snapshot)
