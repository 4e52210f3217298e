"""What a change of policies changes in what is decided: exact, by classes, in both directions, each with a request.

A class is what one row of a rule matches. Every request whose verdict changes is in one of them, and of each class one
is shown, of which both snapshots were asked. Where the truth of a CEL condition matters, it is one of requests whose
verdict `may` change. Nothing is claimed of what was too much work: then the difference is not complete.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from policy.classes.compare import Kind, Shift, shifts
from policy.classes.frames import MAX_STEPS_IN_ALL, Frame, in_frames
from policy.classes.rows import Row
from policy.classes.texts import Undecided, Work
from policy.decision import Decision
from policy.examples import asked, document, rule_name, words
from policy.model import Origin, Request, Target
from policy.snapshot import Judge, Snapshot

MAX_CHANGES = 1000
"""Of all targets together."""
_SHOWN_TARGETS = 3
_SIGN = {Kind.ALLOWED: "+", Kind.DENIED: "-", Kind.ASKED: "?", Kind.UNASKED: "!"}
_WORDS = {
    Kind.ALLOWED: "newly allowed",
    Kind.DENIED: "newly denied",
    Kind.ASKED: "asks a provider besides",
    Kind.UNASKED: "asks a provider no more",
}

Judges = tuple[Judge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One class of requests to `targets` whose verdict changes, and one of them.

    `policy` and `rule` are those that make the difference, None for a namespace's default; with `removed` they are
    those that were there before. `certain` False: whether any verdict changes depends on `conditions`.
    """

    kind: Kind
    targets: tuple[str, ...]
    policy: str | None
    rule: int | None
    action: str
    origin: Origin
    removed: bool
    region: tuple[str, ...]
    """What the class is, in words; all of it must hold."""
    http: bool
    shadow: bool
    provider: str
    request: Request
    before: Decision
    after: Decision
    certain: bool
    conditions: tuple[str, ...]
    row: Row
    """For those who ask whether a request is in the class."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "change": self.kind.value,
            "certain": self.certain,
            "targets": list(self.targets),
            "policy": self.policy,
            "rule": self.rule,
            "action": self.action,
            "removed": self.removed,
            "origin": str(self.origin),
            "region": list(self.region),
            "protocol": "http" if self.http else "connection",
            "shadow": self.shadow,
            "provider": self.provider,
            "conditions": list(self.conditions),
            "request": document(self.request),
            "before": _verdict(self.before),
            "after": _verdict(self.after),
        }

    def text(self) -> str:
        """Some lines."""
        more = len(self.targets) - _SHOWN_TARGETS
        targets = ", ".join(self.targets[:_SHOWN_TARGETS]) + (f" and {more} more" if more > 0 else "")
        may = "" if self.certain else "may be "
        kind = f"{may}{_WORDS[self.kind]}{f' ({self.provider})' if self.provider else ''}"
        shadow = ", in shadow only" if self.shadow else ""
        return "\n".join(
            [
                f"{_SIGN[self.kind]} {kind}: {', '.join(self.region) or 'everything'}{shadow}",
                f"    to {targets}",
                f"    by {'removed ' if self.removed else ''}{rule_name(self.row)}",
                f"    for example {words(self.request)}",
                f"    before: {_said(self.before)}; after: {_said(self.after)}",
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A rule of which it was not decided what it changes."""

    targets: tuple[str, ...]
    policy: str | None
    rule: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """All that changes. `empty` is a proof: every request to every target is decided alike."""

    changes: tuple[Change, ...] = ()
    undecided: tuple[Open, ...] = ()
    more: bool = False
    """There were more changes than are kept."""
    compared: int = 0
    """Targets whose policies differ."""

    @property
    def complete(self) -> bool:
        """Whether every change is in it."""
        return not self.undecided and not self.more

    @property
    def empty(self) -> bool:
        """Whether nothing changes, proven."""
        return self.complete and not self.changes

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "equivalent": self.empty,
            "complete": self.complete,
            "targets": self.compared,
            "changes": [change.document() for change in self.changes],
            "undecided": [
                {"targets": list(one.targets), "policy": one.policy, "rule": one.rule, "message": one.message}
                for one in self.undecided
            ],
        }

    def text(self) -> str:
        """For people."""
        if self.empty:
            return "every request is decided as before"
        parts = [change.text() for change in self.changes]
        parts += [f"? not decided: {one.policy}#{one.rule}: {one.message}" for one in self.undecided]
        if self.more:
            parts.append("? and more")
        return "\n".join(parts)


def difference(before: Snapshot, after: Snapshot, targets: Iterable[Target | str] | None = None) -> Difference:
    """What changes for `targets` (all that either snapshot knows)."""
    groups = _groups(before, after, targets)
    work = Work(MAX_STEPS_IN_ALL)
    changes: list[Change] = []
    undecided: list[Open] = []
    for (one, other), names in groups:
        for shift in _shifts(before, after, one, other, work):
            if shift.box is None:
                undecided.append(_open(shift, names))
            elif len(changes) == MAX_CHANGES:
                return Difference(
                    changes=tuple(changes), undecided=tuple(undecided), more=True, compared=_count(groups)
                )
            else:
                changes.append(_change(shift, names, before, after))
    return Difference(changes=tuple(changes), undecided=tuple(undecided), compared=_count(groups))


Groups = list[tuple[tuple[Judges, Judges], tuple[str, ...]]]


def _groups(before: Snapshot, after: Snapshot, targets: Iterable[Target | str] | None) -> Groups:
    """Targets by their policies on both sides, without those that have the same."""
    if targets is None:
        ids: Iterable[str] = dict.fromkeys((*before.targets, *after.targets))
    else:
        ids = dict.fromkeys(target if isinstance(target, str) else target.spiffe_id for target in targets)
    same_providers = before.mesh.providers == after.mesh.providers
    found: dict[tuple[Judges, Judges], list[str]] = defaultdict(list)
    for name in ids:
        one, other = before.judges(name), after.judges(name)
        if not (same_providers and (one == other or _alike(one, other))):
            found[one, other].append(name)
    return [(pair, tuple(names)) for pair, names in found.items()]


def _alike(one: Judges, other: Judges) -> bool:
    """Whether policies that were compiled apart are the same."""
    return len(one) == len(other) and all(
        a.is_open == b.is_open and a.policies == b.policies for a, b in zip(one, other, strict=True)
    )


def _count(groups: Groups) -> int:
    return sum(len(names) for _, names in groups)


def _shifts(before: Snapshot, after: Snapshot, one: Judges, other: Judges, work: Work) -> Iterator[Shift]:
    """Each row once for each kind: what holds for HTTP, and without shadow policies, is said first."""

    def ask(frame: Frame) -> Iterable[Shift]:
        return shifts(frame, frame.sides(one, before.mesh), frame.sides(other, after.mesh))

    seen = set()
    for shift in in_frames((*one, *other), after.mesh, work, ask):
        policy = shift.row.policy
        key = (shift.kind, shift.removed, shift.provider, policy and policy.id, asked(shift.row), shift.box is None)
        if key not in seen:
            seen.add(key)
            yield shift


def _change(shift: Shift, names: tuple[str, ...], before: Snapshot, after: Snapshot) -> Change:
    if shift.box is None:
        raise Undecided(shift.why)
    request = shift.box.request(http=shift.frame.http)
    was, will = (_decided(snapshot, names[0], request, shadow=shift.frame.shadow) for snapshot in (before, after))
    policy = shift.row.policy
    return Change(
        kind=shift.kind,
        targets=names,
        policy=None if policy is None else policy.id,
        rule=None if policy is None else shift.row.number,
        action="" if policy is None else policy.action.value,
        origin=_origin(shift.row),
        removed=shift.removed,
        region=asked(shift.row),
        http=shift.frame.http,
        shadow=shift.frame.shadow,
        provider=shift.provider,
        request=request,
        before=was,
        after=will,
        certain=_shows(shift, was, will),
        conditions=shift.box.conditions(),
        row=shift.row,
    )


def _decided(snapshot: Snapshot, name: str, request: Request, *, shadow: bool) -> Decision:
    decision = snapshot.decide(name, request)
    return decision.shadow if shadow and decision.shadow is not None else decision


def _shows(shift: Shift, was: Decision, will: Decision) -> bool:
    """Whether the example's verdicts are what the shift says."""
    match shift.kind:
        case Kind.ALLOWED:
            return will.allowed and not was.allowed
        case Kind.DENIED:
            return was.allowed and not will.allowed
        case Kind.ASKED:
            return (
                was.allowed
                and will.allowed
                and shift.provider in will.providers
                and shift.provider not in was.providers
            )
    return was.allowed and will.allowed and shift.provider in was.providers and shift.provider not in will.providers


def _open(shift: Shift, names: tuple[str, ...]) -> Open:
    policy = shift.row.policy
    rule = None if policy is None else shift.row.number
    return Open(targets=names, policy=None if policy is None else policy.id, rule=rule, message=shift.why)


def _origin(row: Row) -> Origin:
    if row.policy is None:
        return Origin()
    rules = row.policy.rules or ()
    return rules[row.number].origin if row.number < len(rules) else row.policy.origin


def _verdict(decision: Decision) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "reason": decision.reason.value,
        "policy": decision.policy,
        "rule": decision.rule,
        "providers": list(decision.providers),
    }


def _said(decision: Decision) -> str:
    by = "" if decision.policy is None else f" by {decision.policy}#{decision.rule}"
    asked_besides = f", {', '.join(decision.providers)} agreeing" if decision.providers else ""
    return f"{'allowed' if decision.allowed else 'denied'}{by} ({decision.reason}{asked_besides})"
