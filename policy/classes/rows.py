"""What the policies of one target ask, for one protocol: rows of questions, by what they decide.

`Side.hits` says which rules match a request, by the index that decides; rules with a CEL condition are found whether it
holds or not, since of those only a truth that was assumed is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from policy.classes.boxes import Box
from policy.classes.literals import Literal, Literals
from policy.classes.narrowing import Narrowing
from policy.classes.texts import Undecided
from policy.compile import ORDER
from policy.evaluate import Evaluator
from policy.model import Action, Group, Mesh, Policy, Request, Rule, Scope, Target
from policy.protocol import for_connections, looks_at_http
from policy.snapshot import Judge, compile_set

MAX_ROWS_PER_RULE = 4096
MAX_PLAIN = 16

Ref = tuple[Policy, int]
"""A rule: its policy and its number in it."""


class Row:
    """One way in which a rule can match: all of its literals hold. Without a policy: what holds if no rule matches.
    Literals are made when they are first asked for: most rows have nothing in a box, which the first of them tells."""

    __slots__ = ("_clauses", "_condition", "_made", "_maker", "number", "policy")

    def __init__(
        self,
        policy: Policy | None = None,
        number: int = 0,
        clauses: Group = (),
        maker: Literals | None = None,
        condition: Literal | None = None,
    ) -> None:
        self.policy, self.number = policy, number
        self._clauses, self._maker, self._condition = clauses, maker, condition
        self._made: tuple[Literal, ...] | None = None

    @property
    def literals(self) -> tuple[Literal, ...]:
        """All that it asks."""
        if self._made is None:
            self._made = tuple(self.each())
        return self._made

    def each(self) -> Iterator[Literal]:
        """The same, one after the other."""
        if self._made is not None:
            yield from self._made
            return
        if self._maker is not None:
            yield from map(self._maker.of, self._clauses)
        if self._condition is not None:
            yield self._condition

    def holds(self, box: Box) -> bool:
        """Whether it matches the box's example."""
        return all(map(box.holds, self.each()))


EVERYTHING = Row()


class Rows:
    """The rows of rules for one protocol, each made once."""

    def __init__(self, literals: Literals, *, http: bool) -> None:
        self.literals, self.http = literals, http
        self._made: dict[tuple[int, int], tuple[Policy, tuple[Row, ...]]] = {}

    def written(self, policy: Policy, number: int) -> tuple[Row, ...]:
        """Those of a rule as it was written: of HTTP something may be in it that connections have not."""
        if self.http:
            return self.of(policy, number)
        if policy.action is Action.ALLOW and looks_at_http((policy.rules or ())[number]):
            return ()
        seen = for_connections(replace(policy, rules=((policy.rules or ())[number],)))
        return tuple(self._rows(policy, number, seen.rules[0])) if seen.rules else ()

    def of(self, policy: Policy, number: int) -> tuple[Row, ...]:
        """Those of a rule as the protocol's index has it."""
        key = (id(policy), number)
        known = self._made.get(key)
        if known is None:
            rule = (policy.rules or ())[number]
            known = self._made[key] = (policy, tuple(self._rows(policy, number, rule)))
        return known[1]

    def _rows(self, policy: Policy, number: int, rule: Rule) -> Iterator[Row]:
        maker = self.literals
        condition = maker.condition(rule, policy.action) if rule.condition else None
        sources, operations = rule.sources or ((),), rule.operations or ((),)
        if len(sources) * len(operations) > MAX_ROWS_PER_RULE:
            raise Undecided(f"rule {number} of {policy.id} has too many combinations of source and operation")
        for source in sources:
            for operation in operations:
                yield Row(policy, number, (*source, *operation, *rule.conditions), maker, condition)


class Side:
    """The policies of one judge for one protocol, enforced ones or shadow ones besides."""

    def __init__(self, judge: Judge, mesh: Mesh, rows: Rows, *, shadow: bool = False) -> None:
        self.judge = judge
        self._rows, self._mesh, self._shadow = rows, mesh, shadow
        self.policies = [policy for policy in judge.policies if shadow or not policy.shadow]
        self.opens = judge.is_open and not any(policy.action is Action.ALLOW for policy in self.policies)
        custom = {policy.provider for policy in self.policies if policy.action is Action.CUSTOM}
        self.providers = custom & mesh.providers
        """Those that may be asked."""
        self._originals: dict[int, Policy] = {}
        self._index: Evaluator | None = None
        self._narrowing = Narrowing()

    @property
    def _evaluator(self) -> Evaluator:
        if self._index is None:
            enforced, shadowing = self.judge.evaluators(http=self._rows.http)
            self._index = (shadowing or enforced) if self._shadow else enforced
            if self._rows.http and self.judge.conditional(shadow=self._shadow):
                self._index = self._unconditional()
        return self._index

    def _unconditional(self) -> Evaluator:
        """An index that finds rules whatever their condition says."""
        target = Target(spiffe_id="spiffe://any", namespace=self._mesh.root_namespace)
        policies = [_without_conditions(policy, self._mesh) for policy in self.policies]
        judge = compile_set(policies, self._mesh, [target]).judges(target.spiffe_id)[0]
        self._originals = {id(new): old for new, old in zip(judge.policies, self.policies, strict=True)}
        return judge.evaluators(http=True)[0]

    def denies(self, policy: Policy) -> bool:
        """Whether a policy's rules deny: those of DENY, and those whose provider is not configured."""
        return policy.action is Action.DENY or (
            policy.action is Action.CUSTOM and policy.provider not in self._mesh.providers
        )

    def rows(self, rules: Iterable[Ref]) -> Iterator[Row]:
        """The rows of rules."""
        for policy, number in rules:
            yield from self._rows.written(policy, number)

    @property
    def denying(self) -> list[Policy]:
        """The policies whose rules deny."""
        return [policy for policy in self.policies if self.denies(policy)]

    @property
    def allowing(self) -> list[Policy]:
        """The policies whose rules allow."""
        return [policy for policy in self.policies if policy.action is Action.ALLOW]

    def asking(self, provider: str) -> list[Policy]:
        """The policies that ask a provider."""
        return [policy for policy in self.policies if policy.action is Action.CUSTOM and policy.provider == provider]

    def allowing_in(self, box: Box) -> Iterator[Row]:
        """The rows that allow, without those that the index knows to match nothing in a box."""
        if self.opens:
            yield EVERYTHING
            return
        if self._rows.http:
            yield from self._in(box, self.allowing, Action.ALLOW)
        else:
            yield from self.rows(ref for ref in self.judge.spoken if self._shadow or not ref[0].shadow)

    def denying_in(self, box: Box) -> Iterator[Row]:
        """The same of those that deny."""
        custom = [policy for policy in self.denying if policy.action is Action.CUSTOM]
        yield from self.rows(refs(custom))
        yield from self._in(box, [policy for policy in self.policies if policy.action is Action.DENY], Action.DENY)

    def _few(self, policies: Sequence[Policy]) -> bool:
        return sum(len(policy.rules or ()) for policy in policies) <= MAX_PLAIN

    def _in(self, box: Box, policies: Sequence[Policy], action: Action) -> Iterator[Row]:
        """Few rules are looked at as they are, and for connections all: most have nothing for them."""
        if not self._rows.http or (self._few(policies) and not box.has_few):
            yield from self.rows(refs(policies))
            return
        seen = set()
        for block in self._evaluator.blocks:
            for found in self._narrowing.rows(block, box):
                key = (id(found.policy), found.number)
                if found.policy.action is action and key not in seen:
                    seen.add(key)
                    yield from self._rows.of(self._originals.get(key[0], found.policy), found.number)

    def hits(self, request: Request, box: Box) -> Iterator[Row]:
        """The rows that match the box's example, of which `request` was made; those that deny come before others."""
        if not self._rows.http and self._few(self.policies):
            yield from self._plain_hits(box)
            return
        for found in self._evaluator.matches(request):
            policy = self._originals.get(id(found.policy), found.policy)
            row = next((row for row in self._rows.of(policy, found.number) if row.holds(box)), None)
            if row is not None:
                yield row

    def _plain_hits(self, box: Box) -> Iterator[Row]:
        """Without an index, which for connections is made only when it is first asked for."""
        for action in ORDER:
            for row in self.rows(refs(policy for policy in self.policies if policy.action is action)):
                if row.holds(box):
                    yield row

    def denial(self, request: Request, box: Box) -> Row | None:
        """A row that denies the example."""
        for row in self.hits(request, box):
            if row.policy is None or row.policy.action is Action.ALLOW:
                return None
            if self.denies(row.policy):
                return row
        return None

    def allowance(self, request: Request, box: Box) -> Row | None:
        """A row that allows the example if nothing denies it."""
        if self.opens:
            return EVERYTHING
        rows = self.hits(request, box)
        return next((row for row in rows if row.policy and row.policy.action is Action.ALLOW), None)

    def asked(self, provider: str, request: Request, box: Box) -> Row | None:
        """A row for which a provider is asked."""
        for row in self.hits(request, box):
            if row.policy is None or row.policy.action is not Action.CUSTOM:
                return None
            if row.policy.provider == provider:
                return row
        return None


def _without_conditions(policy: Policy, mesh: Mesh) -> Policy:
    rules = policy.rules and tuple(replace(r, condition="") if r.condition else r for r in policy.rules)
    return replace(policy, rules=rules, namespace=mesh.root_namespace, scope=Scope(), shadow=False)


def refs(policies: Iterable[Policy]) -> list[Ref]:
    """All rules of policies."""
    return [(policy, number) for policy in policies for number in range(len(policy.rules or ()))]


def only_in(mine: Sequence[Policy], other: Sequence[Policy]) -> list[Ref]:
    """The rules of some policies that none of the others has."""
    same = {id(policy) for policy in other}
    left = [policy for policy in mine if id(policy) not in same]
    if not left:
        return []
    own = {id(policy) for policy in mine}
    theirs = [rule for policy in other if id(policy) not in own for rule in policy.rules or ()]
    known = {id(rule) for rule in theirs}
    found = [(policy, number) for policy, number in refs(left) if id((policy.rules or ())[number]) not in known]
    if not found or not theirs:
        return found
    here = {id(rule) for policy in left for rule in policy.rules or ()}
    equal = {rule for rule in theirs if id(rule) not in here}
    return [(policy, number) for policy, number in found if (policy.rules or ())[number] not in equal]
