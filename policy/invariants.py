"""What must never, or always, be so, whatever policies are written: `never shop/frontend -> payments/db`.

An invariant is checked against every request at once. One that does not hold is shown by a request and the rule that
is to blame; one of which that was too much work, or depends on a CEL condition, counts as not holding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from policy.classes.boxes import Box
from policy.classes.compare import denial
from policy.classes.frames import MAX_STEPS_IN_ALL, Frame, in_frames
from policy.classes.literals import Literal, usual_form
from policy.classes.rows import Row, Side, refs
from policy.classes.search import crossed
from policy.classes.texts import Undecided, Work
from policy.decision import Decision
from policy.examples import document, words
from policy.globs import glob, service_account_test
from policy.invariant_texts import Invariant, Whom, read
from policy.model import Action, Attribute, Mesh, Origin, Policy, Request, Target
from policy.snapshot import Judge, Snapshot
from policy.trust_domains import expanded
from policy.words import clean, place
from policy.workload import names

__all__ = ["Invariant", "Violation", "check", "read"]

BY_PARTS = frozenset({Attribute.SOURCE_NAMESPACE, Attribute.SOURCE_SERVICE_ACCOUNT})
MAX_VIOLATIONS = 10
"""Of one invariant: more are of no more use."""
Judges = tuple[Judge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """An invariant that does not hold for `targets`: `request` is decided otherwise, by `policy` and `rule`, which are
    None where nothing allows it. `certain` False: it depends on a CEL condition, or (without `request`) could not be
    decided, and `message` says so."""

    invariant: str
    targets: tuple[str, ...]
    message: str
    request: Request | None = None
    decision: Decision | None = None
    certain: bool = True
    policy: str | None = None
    rule: int | None = None
    origin: Origin = field(default=Origin(), compare=False)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "invariant": self.invariant,
            "targets": list(self.targets),
            "message": self.message,
            "certain": self.certain,
            "request": None if self.request is None else document(self.request),
            "reason": None if self.decision is None else self.decision.reason.value,
            "policy": self.policy,
            "rule": self.rule,
            "origin": place(self.origin),
        }

    def __str__(self) -> str:
        return f"{clean(self.invariant)}: {self.message}"


def check(
    invariants: Iterable[Invariant], snapshot: Snapshot, *, previous: Snapshot | None = None
) -> tuple[Violation, ...]:
    """What does not hold: one of each invariant for targets that have the same policies, up to MAX_VIOLATIONS. With
    `previous`, of which it is known that they hold, only targets are looked at whose policies are not the same."""
    work = Work(MAX_STEPS_IN_ALL)
    return tuple(one for invariant in invariants for one in _Check(invariant, snapshot, previous).violations(work))


def is_about_nobody(invariant: Invariant, targets: Iterable[Target]) -> bool:
    """Whether it is for none of these: then it holds, whatever policies say."""
    return not any(_is_meant(whom, target) for target in targets for whom in invariant.to)


class _Check:
    """One invariant against one revision."""

    def __init__(self, invariant: Invariant, snapshot: Snapshot, previous: Snapshot | None) -> None:
        self.invariant, self.snapshot = invariant, snapshot
        self._known: tuple[Row, Box | None] | None = None
        self.rule = _as_policy(invariant, snapshot.mesh)
        groups: dict[Judges, list[str]] = defaultdict(list)
        known = previous if previous is not None and previous.mesh == snapshot.mesh else None
        for name, described in snapshot.targets.items():
            same = (
                known is not None and known.judges(name) == snapshot.judges(name) and known.targets[name] == described
            )
            if not same and any(_is_meant(whom, target) for whom in invariant.to for target in described):
                groups[snapshot.judges(name)].append(name)
        self.groups = [(judges, tuple(found)) for judges, found in groups.items()]

    def violations(self, work: Work) -> Iterator[Violation]:
        seen: set[tuple[str, ...]] = set()
        protocols = self.invariant.protocols
        for names_of, violation in in_frames((), self.snapshot.mesh, work, self._ask, protocols=protocols):
            if names_of not in seen and len(seen) < MAX_VIOLATIONS:
                seen.add(names_of)
                yield violation

    def _ask(self, frame: Frame) -> Iterator[tuple[tuple[str, ...], Violation]]:
        count = 0
        for row in frame.rows.written(self.rule, 0):
            for judges, found in self.groups:
                violation = self._of(frame, row, frame.sides(judges), found)
                if violation is not None:
                    count += 1
                    yield found, violation
                if count == MAX_VIOLATIONS:
                    return

    def _of(self, frame: Frame, row: Row, sides: Sequence[Side], found: tuple[str, ...]) -> Violation | None:
        try:
            work = frame.work()
            inside = self._inside(frame, row)
            if inside is None:
                return None
            look = _allowed if self.invariant.never else _denied
            broken = look(frame, inside.with_work(work), sides, work)
        except Undecided as undecided:
            message = f"not decided, which counts as broken: {undecided}"
            return Violation(invariant=self.invariant.name, targets=found, message=message, certain=False)
        return None if broken is None else self._violation(broken, frame, sides, found)

    def _inside(self, frame: Frame, row: Row) -> Box | None:
        """What it is about, as a box; the same for all targets."""
        if self._known is None or self._known[0] is not row:
            self._known = row, frame.begin()[0].having_all([*row.literals, *_usual(row)])
        return self._known[1]

    def _violation(self, box: Box, frame: Frame, sides: Sequence[Side], found: tuple[str, ...]) -> Violation:
        request = box.request(http=frame.http)
        decision = self.snapshot.decide(found[0], request)
        certain = decision.allowed is self.invariant.never
        to_blame = _to_blame(sides, box, request, never=self.invariant.never)
        policy = None if to_blame is None else to_blame.policy
        rule = None if to_blame is None or policy is None else to_blame.number
        by = f" by {policy.action} {clean(policy.id)}#{rule}" if policy is not None else f" ({decision.reason})"
        may = "" if certain else f"depending on the conditions {', '.join(map(clean, box.conditions()))}, "
        verdict = "allowed" if self.invariant.never else "denied"
        return Violation(
            invariant=self.invariant.name,
            targets=found,
            message=f"{may}{words(request)} to {clean(found[0])} {'is' if certain else 'may be'} {verdict}{by}",
            request=request,
            decision=decision,
            certain=certain,
            policy=None if policy is None else policy.id,
            rule=rule,
            origin=_origin(policy, rule),
        )


def _to_blame(sides: Sequence[Side], box: Box, request: Request, *, never: bool) -> Row | None:
    """The rule that allows the example, or denies it, with its number as it was written."""
    if not never:
        return denial(sides, request, box)
    rows = (row for side in sides for row in side.rows(refs(side.allowing)))
    return next((row for row in rows if row.holds(box)), None)


def _allowed(frame: Frame, box: Box, sides: Sequence[Side], work: Work) -> Box | None:
    """A part of the box that all sides allow."""

    def objection(request: Request, part: Box) -> Row | None:
        return denial(sides, request, part)

    return frame.search(crossed(box, [side.allowing_in for side in sides], work), objection, work)


def _denied(frame: Frame, box: Box, sides: Sequence[Side], work: Work) -> Box | None:
    """A part of the box that a side denies, or does not allow."""
    for side in sides:
        found = frame.search([box], side.allowance, work) or next(crossed(box, [side.denying_in], work), None)
        if found is not None:
            return found
    return None


def _as_policy(invariant: Invariant, mesh: Mesh) -> Policy:
    """Whom and what it is about, as a rule: the trust domain's aliases are meant by its principals, too. Its clauses
    are kept for connections, since what is of HTTP alone is not asked of them."""
    rule = replace(invariant.rule, origin=Origin())
    return expanded(Policy(namespace="any", name=invariant.name, action=Action.ALLOW, rules=(rule,)), mesh)


def _usual(row: Row) -> Iterator[Literal]:
    """Who is named by namespace or account has an ID of the usual form: others could have several in it."""
    if any(not one.negated and one.clause is not None and one.clause.attribute in BY_PARTS for one in row.literals):
        yield usual_form()


def _is_meant(whom: Whom, target: Target) -> bool:
    principal = target.spiffe_id.removeprefix("spiffe://")
    return (
        (not whom.spiffe_ids or any(names(match, target.spiffe_id) for match in whom.spiffe_ids))
        and (not whom.namespaces or any(glob(text)(target.namespace) for text in whom.namespaces))
        and (not whom.accounts or any(service_account_test(text)(principal) for text in whom.accounts))
        and set(whom.labels) <= set(target.labels)
    )


def _origin(policy: Policy | None, rule: int | None) -> Origin:
    if policy is None:
        return Origin()
    rules = policy.rules or ()
    return rules[rule].origin if rule is not None and rule < len(rules) else policy.origin
