"""Why a request is allowed or denied: the decisive rule and where it was written, or the rules that came nearest."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from policy.decision import Decision, Reason
from policy.evaluate import Evaluator
from policy.guard import PATH_NOT_NORMAL, refused_unread
from policy.misses import Miss, failed_of, held_of, nearest
from policy.model import Action, Policy, Request, Rule
from policy.pieces import Row
from policy.protocol import looks_at_http
from policy.seen import RuleSeen, elsewhere
from policy.snapshot import UNKNOWN, Judge, Snapshot
from policy.words import Compared, clean, of_http

MAX_NEAREST = 5
MAX_POLICIES = 30
_NEAR_IDS = 200

DESCRIBED_BY = (
    "a target is described by its attested selectors on Kubernetes (`k8s:ns`, `k8s:pod-label`), elsewhere by a "
    "`Workload` object whose `spec.spiffeId` it is"
)
UNREAD = "the path is not normal, and a proxy refuses it before any rule, since policies look at paths"
_WHY = {
    Reason.DENIED_BY_RULE: "a rule that denies matched",
    Reason.ALLOWED_BY_RULE: "no rule denies, and one that allows matched",
    Reason.NOTHING_ALLOWS: "no rule allows it",
    Reason.NAMESPACE_IS_OPEN: "no ALLOW policy is for the target, and its namespace has Istio's default",
    Reason.NO_PROVIDER: "a CUSTOM rule matched, and its provider is not configured",
    Reason.UNKNOWN_TARGET: "nobody described the target",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One decision and its reasons."""

    target: str
    decision: Decision
    revision: int | None
    decisive: RuleSeen | None = None
    shadow_decisive: RuleSeen | None = None
    without: RuleSeen | None = None
    """Of a request that a rule denied: the rule that would allow it otherwise."""
    nearest: tuple[RuleSeen, ...] = ()
    """Where nothing allows: the rules that came nearest, by how much of them failed."""
    policies: tuple[RuleSeen, ...] = ()
    """Each policy for the target that does not apply, by its nearest rule."""
    policies_left_out: int = 0
    elsewhere: tuple[RuleSeen, ...] = ()
    """Where nothing allows: rules that would, whose policies are for others; `failed` is why not for this target."""
    notes: tuple[str, ...] = ()
    unread: bool = False
    """A proxy refuses it before any rule: everything else is what rules alone would say."""

    @property
    def allowed(self) -> bool:
        """The verdict."""
        return self.decision.allowed and not self.unread

    def document(self) -> dict[str, Any]:
        """As JSON."""
        shadow = self.decision.shadow
        return {
            "target": self.target,
            "allowed": self.allowed,
            "reason": PATH_NOT_NORMAL if self.unread else self.decision.reason.value,
            "revision": self.revision,
            "providers": list(self.decision.providers),
            "decisive": _document(self.decisive),
            "otherwise_allowed_by": _document(self.without),
            "nearest": [one.document() for one in self.nearest],
            "policies": [one.document() for one in self.policies],
            "policies_left_out": self.policies_left_out,
            "for_others": [one.document() for one in self.elsewhere],
            "shadow": None
            if shadow is None
            else {
                "allowed": shadow.allowed,
                "reason": shadow.reason.value,
                "providers": list(shadow.providers),
                "decisive": _document(self.shadow_decisive),
            },
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For a person."""
        said = f"{_verdict(self.decision)}: {_WHY[self.decision.reason]}{self._by()}"
        lines = [f"denied: {UNREAD}", f"rules alone: {said}"] if self.unread else [said]
        lines += _indented(self.decisive.held if self.decisive else ())
        if self.decision.allowed and self.decision.providers:
            lines.append(f"  if {', '.join(map(clean, self.decision.providers))} agree, who are asked besides")
        if self.without is not None:
            lines.append(f"without that rule it would be allowed by {self.without}")
        if self.nearest:
            lines.append("nearest rules:")
        for miss in self.nearest:
            lines += [f"  {miss}: {len(miss.failed)} failed", *_indented(miss.failed, "    ")]
        if self.elsewhere:
            lines.append("would allow it, and are not for this target:")
        lines += [f"  {one}: {'; '.join(map(str, one.failed))}" for one in self.elsewhere]
        lines += self._others()
        if (shadow := self.decision.shadow) is not None:
            by = f", by {self.shadow_decisive}" if self.shadow_decisive is not None else ""
            lines.append(f"with shadow policies: {_verdict(shadow)}, {_WHY[shadow.reason]}{by}")
        lines += [f"note: {note}" for note in self.notes]
        if self.revision is not None:
            lines.append(f"revision {self.revision}")
        return "\n".join(lines)

    def _by(self) -> str:
        return f", {self.decisive}" if self.decisive is not None else ""

    def _others(self) -> list[str]:
        """Why each of the other policies does not apply, a line each."""
        told = {(miss.policy, miss.action, miss.rule) for miss in self.nearest}
        others = [one for one in self.policies if (one.policy, one.action, one.rule) not in told]
        if not others:
            return []
        lines = ["policies that do not apply:"]
        lines += [f"  {one}: {'; '.join(map(str, one.failed)) or 'it has no rules'}" for one in others]
        if self.policies_left_out:
            lines.append(f"  … {self.policies_left_out} more")
        return lines


def explain(snapshot: Snapshot, target_id: str, request: Request, *, revision: int | None = None) -> Explanation:
    """The decision that `snapshot.decide` makes, and why."""
    judges = snapshot.judges(target_id)
    if not judges:
        return Explanation(
            target=target_id, decision=UNKNOWN, revision=revision, notes=(DESCRIBED_BY, *_near(snapshot, target_id))
        )
    decision, judge = _decisive_judge(judges, request)
    enforced, with_shadow = judge.evaluators(http=request.http)
    row = _row(enforced, decision, request)
    shadow_row = None
    if with_shadow is not None and decision.shadow is not None:
        shadow_row = _row(with_shadow, decision.shadow, request)
    found = Explanation(
        target=target_id,
        decision=decision,
        revision=revision,
        decisive=_matched(row, request),
        shadow_decisive=_matched(shadow_row, request),
        without=_without(enforced, decision, request),
        notes=tuple(_notes(snapshot, target_id, judge)),
        unread=refused_unread(snapshot, target_id, request),
    )
    return _with_misses(found, snapshot, judge, enforced, request)


def _decisive_judge(judges: Sequence[Judge], request: Request) -> tuple[Decision, Judge]:
    """The first that denies, else the first."""
    decided = [(judge.decide(request), judge) for judge in judges]
    return next((pair for pair in decided if not pair[0].allowed), decided[0])


def _seen(policy: Policy, rule: Rule, number: int) -> RuleSeen:
    return RuleSeen(
        policy=policy.id,
        action=policy.action,
        rule=number,
        origin=rule.origin if rule.origin.source else policy.origin,
        shadow=policy.shadow,
    )


def _missed(miss: Miss) -> RuleSeen:
    return replace(_seen(miss.policy, miss.rule, miss.number), failed=miss.failed)


def _matched(row: Row | None, request: Request) -> RuleSeen | None:
    if row is None:
        return None
    rule = (row.policy.rules or ())[row.number]
    return replace(_seen(row.policy, rule, row.number), held=held_of(rule, request))


def _row(evaluator: Evaluator, decision: Decision, request: Request) -> Row | None:
    """The row that decided."""
    if decision.policy is None:
        return None
    for row in evaluator.matches(request):
        if row.policy.id == decision.policy and row.number == decision.rule:
            return row
    return None


def _without(evaluator: Evaluator, decision: Decision, request: Request) -> RuleSeen | None:
    if decision.reason not in (Reason.DENIED_BY_RULE, Reason.NO_PROVIDER):
        return None
    others = [row for row in evaluator.matches(request) if row.policy.action is not Action.ALLOW]
    if len({(row.policy.id, row.number) for row in others}) > 1:
        return None
    allowing = (row for row in evaluator.matches(request) if row.policy.action is Action.ALLOW)
    return _matched(next(allowing, None), request)


def _with_misses(
    found: Explanation, snapshot: Snapshot, judge: Judge, evaluator: Evaluator, request: Request
) -> Explanation:
    policies = [policy for policy in judge.policies if not policy.shadow and policy.action is not Action.AUDIT]
    misses = [_missed(m) for m in nearest(evaluator, request, rules=MAX_NEAREST, policies=MAX_POLICIES)]
    misses += _of_http(policies, request)
    misses.sort(key=lambda miss: len(miss.failed))
    first: dict[tuple[str, Action], RuleSeen] = {}
    for miss in misses:
        first.setdefault((miss.policy, miss.action), miss)
    matched = {(row.policy.id, row.policy.action) for row in evaluator.matches(request)}
    for policy in policies:
        if not policy.rules:
            first.setdefault(
                (policy.id, policy.action),
                RuleSeen(policy=policy.id, action=policy.action, rule=None, origin=policy.origin),
            )
    others = [miss for key, miss in first.items() if key not in matched]
    nothing_allows = found.decision.reason is Reason.NOTHING_ALLOWS
    return replace(
        found,
        elsewhere=tuple(elsewhere(snapshot, found.target, request)) if nothing_allows else (),
        nearest=tuple([m for m in misses if m.action is Action.ALLOW][:MAX_NEAREST]) if nothing_allows else (),
        policies=tuple(others[:MAX_POLICIES]),
        policies_left_out=max(0, len(policies) - len(matched) - min(len(others), MAX_POLICIES)),
    )


def _of_http(policies: Sequence[Policy], request: Request) -> list[RuleSeen]:
    """Rules that are dropped since the request is none of HTTP."""
    found: list[RuleSeen] = []
    if request.http:
        return found
    for policy in policies:
        if policy.action is not Action.ALLOW:
            continue
        for number, rule in enumerate(policy.rules or ()):
            if not looks_at_http(rule) or len(found) >= MAX_POLICIES:
                continue
            groups = (*rule.sources, *rule.operations, rule.conditions)
            of = tuple(of_http(clause) for group in groups for clause in group if clause.attribute.http_only)
            other = tuple(
                one for one in failed_of(rule, policy.action, request) if one.what not in {c.what for c in of}
            )
            origin = rule.origin if rule.origin.source else policy.origin
            found.append(
                RuleSeen(policy=policy.id, action=policy.action, rule=number, origin=origin, failed=(*of, *other))
            )
    return found


def _notes(snapshot: Snapshot, target_id: str, judge: Judge) -> list[str]:
    notes = []
    targets = snapshot.targets[target_id]
    if len(snapshot.judges(target_id)) > 1:
        notes.append(f"{len(targets)} workloads with different policies have this ID: each of them must allow")
    if not judge.policies:
        notes.append("no policy is for the target")
    return notes


def _near(snapshot: Snapshot, target_id: str) -> list[str]:
    """Targets that are called nearly so."""
    known = sorted(snapshot.targets)
    at = bisect_left(known, target_id)
    some = known[max(0, at - _NEAR_IDS // 2) : at + _NEAR_IDS // 2]
    near = get_close_matches(target_id[:400], some, 3, 0.8)
    return [f"targets are called nearly so: {', '.join(map(clean, near))}"] if near else []


def _verdict(decision: Decision) -> str:
    return "allowed" if decision.allowed else "denied"


def _document(seen: RuleSeen | None) -> dict[str, Any] | None:
    return None if seen is None else seen.document()


def _indented(found: Sequence[Compared], by: str = "  ") -> list[str]:
    return [f"{by}{one}" for one in found]
