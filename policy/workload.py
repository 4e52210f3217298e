"""Which policies are for which target: by namespace, labels, SPIFFE ID or reference; none is above another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Protocol

from policy.model import Match, MatchKind, Policy, Scope, Target

Pair = tuple[str, str]
Numbered = tuple[int, Policy]
GATEWAY_CLASS = "GatewayClass"
_number = itemgetter(0)


class Scoped(Protocol):
    """A policy, or a RequestAuthentication."""

    @property
    def namespace(self) -> str: ...

    @property
    def scope(self) -> Scope: ...


def is_for(policy: Scoped, target: Target, *, root_namespace: str) -> bool:
    """Whether a policy is for a target."""
    in_root = policy.namespace == root_namespace
    scope = policy.scope
    if scope.references:
        return any(
            reference in target.references
            and (policy.namespace == target.namespace or (in_root and reference[0] == GATEWAY_CLASS))
            for reference in scope.references
        )
    if not in_root and policy.namespace != target.namespace:
        return False
    return _selected(scope, target)


def _selected(scope: Scope, target: Target) -> bool:
    if scope.labels and (target.waypoint or not set(scope.labels) <= set(target.labels)):
        return False
    return not scope.spiffe_ids or any(names(match, target.spiffe_id) for match in scope.spiffe_ids)


def names(match: Match, spiffe_id: str) -> bool:
    """Whether a match of a scope names a SPIFFE ID."""
    return spiffe_id.startswith(match.text) if match.kind is MatchKind.PREFIX else spiffe_id == match.text


class Scopes:
    """Finds a target's policies without looking at all: each waits under one thing that the target must have."""

    def __init__(self, policies: Iterable[Policy], *, root_namespace: str) -> None:
        self.root_namespace = root_namespace
        self._by_namespace: defaultdict[str, list[Numbered]] = defaultdict(list)
        self._by_label: defaultdict[tuple[str, Pair], list[Numbered]] = defaultdict(list)
        self._by_id: defaultdict[str, list[Numbered]] = defaultdict(list)
        self._by_reference: defaultdict[Pair, list[Numbered]] = defaultdict(list)
        for number, policy in enumerate(policies):
            self._add(number, policy)

    def _add(self, number: int, policy: Policy) -> None:
        scope, item = policy.scope, (number, policy)
        if scope.references:
            for reference in dict.fromkeys(scope.references):
                self._by_reference[reference].append(item)
        elif scope.labels:
            self._by_label[policy.namespace, scope.labels[0]].append(item)
        elif scope.spiffe_ids and all(match.kind is MatchKind.EXACT for match in scope.spiffe_ids):
            for text in dict.fromkeys(match.text for match in scope.spiffe_ids):
                self._by_id[text].append(item)
        else:
            self._by_namespace[policy.namespace].append(item)

    def of(self, target: Target) -> tuple[Policy, ...]:
        """The policies for a target, in the order they came."""
        found = list(self._by_id.get(target.spiffe_id, ()))
        for namespace in {self.root_namespace, target.namespace}:
            found += self._by_namespace.get(namespace, ())
            for label in target.labels:
                found += self._by_label.get((namespace, label), ())
        for reference in target.references:
            found += (item for item in self._by_reference.get(reference, ()) if item not in found)
        if len(found) > 1:
            found.sort(key=_number)
        return tuple(policy for _, policy in found if is_for(policy, target, root_namespace=self.root_namespace))


class Since:
    """The same, for a revision that differs little from another: of a target that had its policies there, those that
    are still there and those that are new are all. `of` is as `Scopes.of` for a target that was not there."""

    def __init__(self, policies: Sequence[Policy], before: Sequence[Policy], *, root_namespace: str) -> None:
        self._policies, self._root_namespace = policies, root_namespace
        self._number = {id(policy): number for number, policy in enumerate(policies)}
        known = set(map(id, before))
        self._new = Scopes((policy for policy in policies if id(policy) not in known), root_namespace=root_namespace)

    @cached_property
    def _scopes(self) -> Scopes:
        return Scopes(self._policies, root_namespace=self._root_namespace)

    def of(self, target: Target, before: Iterable[Policy] | None) -> tuple[Policy, ...]:
        """The policies for a target, in the order they come. `before` are those it had, others than policies too."""
        if before is None:
            return self._scopes.of(target)
        number = self._number
        found = [policy for policy in before if id(policy) in number]
        found += self._new.of(target)
        found.sort(key=lambda policy: number[id(policy)])
        return tuple(found)
