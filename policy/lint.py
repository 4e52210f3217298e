"""What should be looked at in a set of policies, by codes; every code is a section of the page, with an example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from policy.classes.boxes import Box
from policy.classes.frames import MAX_STEPS_IN_ALL, Frame
from policy.classes.literals import AskedBoth
from policy.classes.rows import Row, Side
from policy.classes.texts import Undecided, Work
from policy.examples import words
from policy.findings import Finding, Severity
from policy.lint_rules import Judgement, Use, judged
from policy.lint_texts import said_of
from policy.model import Action, Mesh, Origin, Policy, Request, Rule, Scope, Target
from policy.parse import PolicySet
from policy.problems import shown
from policy.snapshot import Judge, Snapshot, compile_set
from policy.workload import Scopes, is_for

CODES: dict[str, tuple[Severity, str]] = {
    "L001": (Severity.WARNING, "a rule that nothing can match"),
    "L002": (Severity.WARNING, "a policy of which no rule can match"),
    "L003": (Severity.INFO, "a rule without which all would be decided as it is"),
    "L004": (Severity.WARNING, "an allow that a broader allow makes needless"),
    "L005": (Severity.WARNING, "an allow of which everything is denied"),
    "L006": (Severity.INFO, "a deny that a broader deny makes needless"),
    "L007": (Severity.WARNING, "an allow for callers of any trust domain"),
    "L008": (Severity.WARNING, "a path that no request can have"),
    "L009": (Severity.WARNING, "a pattern that is taken literally"),
    "L010": (Severity.WARNING, "a policy for targets that are not there"),
    "L011": (Severity.ERROR, "fields of HTTP where no HTTP is spoken"),
    "L012": (Severity.WARNING, "a first allow, which denies everybody else"),
    "L013": (Severity.WARNING, "a condition that looks at nothing"),
    "L014": (Severity.WARNING, "tokens are asked for, and nobody says whose are believed"),
    "L015": (Severity.ERROR, "a provider that is not configured"),
    "L016": (Severity.WARNING, "a method that no request has"),
    "L017": (Severity.WARNING, "an allow that leaves out some and lets in the nameless"),
}

MAX_OTHERS = 4


def lint(
    parsed: PolicySet,
    mesh: Mesh,
    targets: Sequence[Target],
    *,
    snapshot: Snapshot | None = None,
    before: Snapshot | None = None,
    only: Collection[str] | None = None,
) -> tuple[Finding, ...]:
    """Everything found, by policy and rule. `snapshot` is `parsed` compiled, if it is at hand; `before` is what holds
    today; `only` are the ids of the policies to look at."""
    compiled = snapshot or compile_set(parsed.policies, mesh, targets, peers=parsed.peer_authentications)
    linter = _Linter(parsed, compiled, before, only)
    found = sorted(
        linter.findings(), key=lambda f: (linter.order.get(f.key, 0), f.rule if f.rule is not None else -1, f.code)
    )
    return tuple(dict.fromkeys(found))


class _Linter:
    """One reading."""

    def __init__(
        self, parsed: PolicySet, snapshot: Snapshot, before: Snapshot | None, only: Collection[str] | None
    ) -> None:
        self.parsed, self.snapshot, self.before = parsed, snapshot, before
        self.policies = [policy for policy in parsed.policies if only is None or policy.id in only]
        self.scopes = Scopes(self.policies, root_namespace=snapshot.mesh.root_namespace)
        self.targets = [target for some in snapshot.targets.values() for target in some]
        self.mine: dict[str, list[Target]] = defaultdict(list)
        for target in self.targets:
            for policy in self.scopes.of(target):
                self.mine[policy.id].append(target)
        self.order = {policy.id: number for number, policy in enumerate(parsed.policies)}
        self.by_id = {policy.id: policy for policy in self.policies}

    def findings(self) -> Iterator[Finding]:
        for policy in self.policies:
            yield from self._of_policy(policy)
        yield from self._of_rules()
        yield from self._first_allows()

    def _finding(self, policy: Policy, rule: int | None, code: str, message: str, hint: str) -> Finding:
        return Finding(
            code=code,
            severity=CODES[code][0],
            key=policy.id,
            rule=rule,
            message=message,
            hint=hint,
            origin=_origin(policy, rule),
        )

    def _of_policy(self, policy: Policy) -> Iterator[Finding]:
        for number, rule in enumerate(policy.rules or ()):
            for code, message, hint in said_of(policy, rule):
                yield self._finding(policy, number, code, message, hint)
        if policy.action is Action.CUSTOM and policy.provider not in self.snapshot.mesh.providers:
            message = f"the provider {shown(policy.provider)} is not configured: what the rules match is denied"
            yield self._finding(policy, None, "L015", message, "configure it, or write DENY")
        mine = self.mine[policy.id]
        if not mine and policy.scope != Scope():
            hint = (
                "`burgee.spiffeIds`, labels and references must be those of a workload in the policy's namespace; "
                "--workloads names those that are in no file of policies"
            )
            yield self._finding(policy, None, "L010", "no target that is known is selected", hint)
        yield from self._tokens(policy, mine)

    def _tokens(self, policy: Policy, targets: Iterable[Target]) -> Iterator[Finding]:
        number = next((n for n, rule in enumerate(policy.rules or ()) if _asks_for_token(rule)), None)
        if number is None:
            return
        without = next((target for target in targets if not self._believes(target)), None)
        if without is not None:
            message = f"no RequestAuthentication is for {shown(without.spiffe_id)}: only JWT-SVIDs are believed there"
            yield self._finding(policy, number, "L014", message, "write a RequestAuthentication with the issuer")

    def _believes(self, target: Target) -> bool:
        root = self.snapshot.mesh.root_namespace
        return any(
            is_for(Policy(namespace=one.namespace, name=one.name, scope=one.scope), target, root_namespace=root)
            for one in self.parsed.request_authentications
            if one.rules
        )

    def _of_rules(self) -> Iterator[Finding]:
        judges = dict.fromkeys(judge for name in self.snapshot.targets for judge in self.snapshot.judges(name))
        found = judged(judges, self.snapshot.mesh, frozenset(self.by_id))
        for (key, number), judgement in found.items():
            if judgement.use is not Use.NEEDED and not self._stays(key, number, judgement):
                yield self._useless(self.by_id[key], number, judgement)
        for policy in self.policies:
            uses = {found[policy.id, n].use for n in range(len(policy.rules or ())) if (policy.id, n) in found}
            if uses == {Use.VACUOUS}:
                does = (
                    "everything is denied that no other policy allows"
                    if policy.action is Action.ALLOW
                    else "it does nothing"
                )
                yield self._finding(
                    policy, None, "L002", f"none of its rules can match: {does}", "mend its rules, or delete it"
                )

    def _stays(self, key: str, number: int, judgement: Judgement) -> bool:
        """Of equal rules, which make each other needless, the first one stays."""
        rule = self._rule(key, number)
        mine = self.order[key], number
        return bool(judgement.others) and all(
            (self.order.get(other, -1), at) > mine and self._rule(other, at) == rule for other, at in judgement.others
        )

    def _rule(self, key: str, number: int) -> Rule | None:
        """As it was written; an index for connections may number rules otherwise."""
        rules = self.parsed.policies[self.order[key]].rules or () if key in self.order else ()
        return rules[number] if number < len(rules) else None

    def _useless(self, policy: Policy, number: int, judgement: Judgement) -> Finding:
        more = len(judgement.others) - MAX_OTHERS
        others = ", ".join(f"{key}#{at}" for key, at in list(judgement.others)[:MAX_OTHERS]) + (
            f" and {more} more" if more > 0 else ""
        )
        if judgement.use is Use.VACUOUS:
            code, message = "L001", "no request can match all that it asks"
        elif judgement.use is Use.OVERRIDDEN:
            code, message = "L005", f"everything that it allows is denied by {others}"
        elif judgement.use is Use.SHADOWED:
            code = "L004" if policy.action is Action.ALLOW else "L006"
            message = f"{others} {'allows' if code == 'L004' else 'denies'} all of it and more"
        else:
            code, message = (
                "L003",
                f"nothing would be decided otherwise without it, because of {others or 'the others'}",
            )
        return self._finding(policy, number, code, message, "leave the rule out, or narrow the other")

    def _first_allows(self) -> Iterator[Finding]:
        seen: set[tuple[str, int]] = set()
        for name in self.snapshot.targets:
            was_open = self.before is None or self._is_open(self.before.judges(name))
            for judge in self.snapshot.judges(name) if was_open else ():
                allows = [policy for policy in judge.policies if policy.action is Action.ALLOW and not policy.shadow]
                if judge.is_open and len(allows) == 1 and allows[0].id in self.by_id:
                    key = (allows[0].id, id(judge))
                    if key not in seen and (request := _cut_off(judge, self.snapshot.mesh)) is not None:
                        message = f"{shown(name)} could be called by anybody; now this is denied: {words(request)}"
                        hint = "make it a shadow policy first, and read who calls from the decision log"
                        yield self._finding(self.by_id[allows[0].id], None, "L012", message, hint)
                    seen.add(key)

    @staticmethod
    def _is_open(judges: Iterable[Judge]) -> bool:
        return all(
            judge.is_open and not any(p.action is Action.ALLOW and not p.shadow for p in judge.policies)
            for judge in judges
        )


def _cut_off(judge: Judge, mesh: Mesh) -> Request | None:
    """A request that nothing denies and nothing allows."""
    try:
        frame = Frame(mesh, Work(MAX_STEPS_IN_ALL))
        (side,) = frame.sides((judge,))
        box, work = frame.begin()
        found = frame.search([box], lambda request, part: _decides(side, request, part), work)
        return None if found is None else found.request(http=True)
    except (Undecided, AskedBoth):
        return None


def _decides(side: Side, request: Request, box: Box) -> Row | None:
    return next(side.hits(request, box), None)


def _asks_for_token(rule: Rule) -> bool:
    """Whether a rule is about tokens that are not said to be JWT-SVIDs."""
    return any(
        clause.attribute.needs_jwt
        and not clause.negated
        and not any("spiffe://" in match.text for match in clause.matches)
        for group in (*rule.sources, rule.conditions)
        for clause in group
    )


def _origin(policy: Policy, rule: int | None) -> Origin:
    return policy.origin if rule is None else (policy.rules or ())[rule].origin
