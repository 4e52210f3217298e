"""PeerAuthentication as policies: STRICT denies whoever showed no certificate, before anything else may allow it.

Of the objects for a target the narrowest scope with a mode holds: labels, then the namespace, then the whole mesh;
within a scope the first by name. PERMISSIVE denies nobody; policies that name principals never match plain text anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from policy.authentication import Mode, PeerAuthentication
from policy.model import Action, Attribute, Clause, Group, Match, MatchKind, Policy, Rule, Target

_NO_CERTIFICATE = Clause(
    attribute=Attribute.SOURCE_PRINCIPAL,
    matches=(Match(MatchKind.PRESENT),),
    negated=True,
    origin="mtls",
)


@dataclass(slots=True)
class Peers:
    """Gives each target its policy; the same object for the same objects."""

    objects: Sequence[PeerAuthentication]
    root_namespace: str
    _made: dict[tuple[PeerAuthentication, ...], Policy | None] = field(default_factory=dict)

    def policy_for(self, target: Target) -> Policy | None:
        """The policy that the mode of a target is; None where plain text is let in."""
        if not self.objects:
            return None
        chain = tuple(self._chain(target))
        if chain not in self._made:
            self._made[chain] = _policy(chain)
        return self._made[chain]

    def _chain(self, target: Target) -> Iterable[PeerAuthentication]:
        """One object of each scope, the narrowest first."""
        mine = [o for o in self.objects if o.namespace in (target.namespace, self.root_namespace)]
        for scope in (self._labelled, self._of_namespace, self._of_mesh):
            found = sorted((o for o in mine if scope(o, target)), key=lambda o: (o.namespace, o.name))
            yield from found[:1]

    def _labelled(self, o: PeerAuthentication, target: Target) -> bool:
        return bool(o.scope.labels) and o.namespace == target.namespace and set(o.scope.labels) <= set(target.labels)

    def _of_namespace(self, o: PeerAuthentication, target: Target) -> bool:
        return not o.scope.labels and o.namespace == target.namespace != self.root_namespace

    def _of_mesh(self, o: PeerAuthentication, _: Target) -> bool:
        return not o.scope.labels and o.namespace == self.root_namespace


def _policy(chain: tuple[PeerAuthentication, ...]) -> Policy | None:
    decisive = next((o for o in chain if o.mode is not Mode.UNSET), None)
    strict = decisive is not None and decisive.mode is Mode.STRICT
    ports = {port: mode for port, mode in (chain[0].ports if chain else ()) if mode is not Mode.UNSET}
    rules: list[Rule] = []
    if strict:
        rules.append(_rule(_ports((p for p, mode in ports.items() if mode is Mode.PERMISSIVE), negated=True)))
    elif denied := _ports((p for p, mode in ports.items() if mode is Mode.STRICT), negated=False):
        rules.append(_rule(denied))
    if not rules:
        return None
    named = decisive if strict and decisive is not None else chain[0]
    return Policy(
        namespace=named.namespace, name=named.name, action=Action.DENY, rules=tuple(rules), origin=named.origin
    )


def _rule(operation: Group) -> Rule:
    return Rule(sources=((_NO_CERTIFICATE,),), operations=(operation,) if operation else ())


def _ports(ports: Iterable[int], *, negated: bool) -> Group:
    matches = tuple(Match(MatchKind.EXACT, str(port)) for port in sorted(ports))
    if not matches:
        return ()
    return (Clause(attribute=Attribute.DESTINATION_PORT, matches=matches, negated=negated, origin="portLevelMtls"),)
