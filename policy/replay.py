"""What a log's decisions would be under other policies: who is newly denied or allowed, how often, and by which rule.

A record is only as good as what it knows. Where the policies that hold now decide a record otherwise than was recorded,
or look at what was masked in it, it is counted apart and nothing is concluded from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from policy.decision import Reason
from policy.decision_record import DecisionRecord, Source
from policy.explain import Explanation, explain
from policy.guard import PATH_NOT_NORMAL, refused_unread
from policy.model import Attribute, Request
from policy.path_shapes import shape_of
from policy.snapshot import Judge, Snapshot
from policy.words import clean

MAX_GROUPS = 5_000
MAX_EXPLAINED = 200
MAX_SHOWN = 50


@dataclass(slots=True, kw_only=True)
class Group:
    """Requests that differ by no more than identifiers in their paths. `before` and `after` name the decisive rule,
    `namespace/name#number`, or the reason where none was."""

    principal: str | None
    target: str
    method: str | None
    path: str | None
    before: str
    after: str
    count: int = 0
    first: datetime
    last: datetime
    example: DecisionRecord
    why: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "principal": self.principal,
            "target": self.target,
            "method": self.method,
            "path": self.path,
            "before": self.before,
            "after": self.after,
            "count": self.count,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
            "example": self.example.id,
            "why": self.why,
        }

    def __str__(self) -> str:
        who = clean(self.principal) if self.principal is not None else "no identity"
        what = " ".join(clean(text) for text in (self.method, self.path) if text)
        return f"{who} -> {clean(self.target)}{f' {what}' if what else ''} ({self.count:,})"


@dataclass(slots=True)
class Replay:
    """The outcome. Records that are in neither list of groups, nor counted apart, are decided as before."""

    newly_denied: list[Group] = field(default_factory=list)
    newly_allowed: list[Group] = field(default_factory=list)
    records: int = 0
    questions: int = 0
    """What somebody only asked about: nobody is denied or allowed by its change."""
    unknown_targets: int = 0
    """Of targets that the policies do not know: nothing is said of them."""
    masked: int = 0
    """The policies look at what was masked."""
    unlike: int = 0
    """The policies that hold decide otherwise than was recorded: the record knows too little, or others held then."""
    left_out: int = 0
    """Changes beyond the greatest number of groups; counted, not shown."""

    @property
    def changed(self) -> bool:
        """Whether anything is decided otherwise."""
        return bool(self.newly_denied or self.newly_allowed or self.left_out)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "records": self.records,
            "newly_denied": [group.document() for group in self.newly_denied],
            "newly_allowed": [group.document() for group in self.newly_allowed],
            "questions": self.questions,
            "unknown_targets": self.unknown_targets,
            "masked": self.masked,
            "unlike": self.unlike,
            "left_out": self.left_out,
        }

    def text(self) -> str:
        """For a person."""
        denied, allowed = (sum(g.count for g in groups) for groups in (self.newly_denied, self.newly_allowed))
        lines = [f"of {self.records:,} recorded requests: {denied:,} newly denied, {allowed:,} newly allowed"]
        for title, groups in (("newly denied", self.newly_denied), ("newly allowed", self.newly_allowed)):
            if groups:
                lines.append(f"{title}:")
            for group in groups[:MAX_SHOWN]:
                lines += [f"  {group}", f"    {group.before} -> {group.after}{f': {group.why}' if group.why else ''}"]
            if len(groups) > MAX_SHOWN:
                lines.append(f"  … {len(groups) - MAX_SHOWN} more groups")
        for count, what in (
            (self.questions, "were only asked about, and are passed over"),
            (self.unknown_targets, "are of targets that nobody described"),
            (self.masked, "lack what the policies look at, since it was masked"),
            (self.unlike, "are not decided as recorded by the policies that hold now, so nothing follows from them"),
            (self.left_out, "changed besides, in more groups than are kept"),
        ):
            if count:
                lines.append(f"{count:,} {what}")
        return "\n".join(lines)


def replay(records: Iterable[DecisionRecord], proposed: Snapshot, *, current: Snapshot | None = None) -> Replay:
    """Decides every record again. With `current`, the policies that hold now, a record that these decide otherwise
    than was recorded is set apart."""
    found = Replay()
    groups: dict[tuple[object, ...], Group] = {}
    looks = _Looks(proposed)
    for record in records:
        found.records += 1
        request = record.request
        if record.source is Source.EVALUATE:
            found.questions += 1
        elif not proposed.judges(record.target):
            found.unknown_targets += 1
        elif record.masked and looks.at(record.target, record.masked):
            found.masked += 1
        elif current is not None and _verdict(current, record.target, request)[0] != record.allowed:
            found.unlike += 1
        elif (verdict := _verdict(proposed, record.target, request))[0] != record.allowed:
            _count(found, groups, record, after=verdict[1])
    _explain(groups, proposed)
    ordered = sorted(groups.values(), key=lambda group: -group.count)
    found.newly_denied = [group for group in ordered if group.example.allowed]
    found.newly_allowed = [group for group in ordered if not group.example.allowed]
    return found


def _verdict(snapshot: Snapshot, target: str, request: Request) -> tuple[bool, str]:
    """Whether a proxy lets a request through, and the decisive rule, or the reason where there is none."""
    if refused_unread(snapshot, target, request):
        return False, PATH_NOT_NORMAL
    decision = snapshot.decide(target, request)
    return decision.allowed, _rule(decision.policy, decision.rule, decision.reason.value)


def _count(found: Replay, groups: dict[tuple[object, ...], Group], record: DecisionRecord, *, after: str) -> None:
    path = None if record.path is None else shape_of(record.path)
    before = _rule(record.policy, record.rule, record.reason)
    key = (record.principal, record.target, record.method, path, before, after)
    group = groups.get(key)
    if group is None:
        if len(groups) >= MAX_GROUPS:
            found.left_out += 1
            return
        group = groups[key] = Group(
            principal=record.principal,
            target=record.target,
            method=record.method,
            path=path,
            before=before,
            after=after,
            first=record.at,
            last=record.at,
            example=record,
        )
    group.count += 1
    group.first, group.last = min(group.first, record.at), max(group.last, record.at)


def _rule(policy: str | None, rule: int | None, reason: str) -> str:
    return reason if policy is None else f"{policy}#{rule}" if rule is not None else policy


def _explain(groups: dict[tuple[object, ...], Group], proposed: Snapshot) -> None:
    """Why the first of those that are denied newly are."""
    denied = sorted((group for group in groups.values() if group.example.allowed), key=lambda group: -group.count)
    for group in denied[:MAX_EXPLAINED]:
        if group.after == PATH_NOT_NORMAL:
            group.why = "the path is one that proxies read differently"
        else:
            group.why = _why(explain(proposed, group.target, group.example.request))


def _why(found: Explanation) -> str:
    if found.decision.reason is Reason.NOTHING_ALLOWS and found.nearest:
        return f"nearest is {found.nearest[0].name}, {'; '.join(map(str, found.nearest[0].failed))}"
    return "; ".join(map(str, found.decisive.held)) if found.decisive is not None else ""


class _Looks:
    """What of requests the policies of a target look at, by the names that masking has."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.known: dict[str, frozenset[str] | None] = {}

    def at(self, target: str, masked: tuple[str, ...]) -> bool:
        """Whether it is at any of these. CEL conditions may look at everything."""
        if target not in self.known:
            self.known[target] = _names(self.snapshot.judges(target))
        names = self.known[target]
        return names is None or any(_meet(name, one) for name in names for one in masked)


def _meet(one: str, other: str) -> bool:
    """Whether one of two is the other or a part of it: all `headers` are masked, and a rule looks at `headers.x`."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _names(judges: tuple[Judge, ...]) -> frozenset[str] | None:
    found: set[str] = set()
    for rule in (rule for judge in judges for policy in judge.policies for rule in policy.rules or ()):
        if rule.condition:
            return None
        for clause in (c for group in (*rule.sources, *rule.operations, rule.conditions) for c in group):
            found |= _masked_names(clause.attribute, clause.key)
    return frozenset(found)


def _masked_names(attribute: Attribute, key: tuple[str, ...]) -> set[str]:
    if attribute is Attribute.HEADER:
        return {f"headers.{key[0]}"}
    if attribute is Attribute.CLAIM:
        return {f"claims.{key[0]}"}
    if attribute is Attribute.METADATA:
        return {"metadata"}
    if attribute.needs_jwt:
        return {"claims.iss", "claims.sub", "claims.aud", "claims.azp"}
    return {_FIELDS.get(attribute, "")} - {""}


_FIELDS = {
    Attribute.PATH: "path",
    Attribute.HOST: "host",
    Attribute.METHOD: "method",
    Attribute.SOURCE_IP: "source_ip",
    Attribute.REMOTE_IP: "remote_ip",
    Attribute.SOURCE_PRINCIPAL: "principal",
}
