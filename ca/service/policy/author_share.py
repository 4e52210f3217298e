"""How much of the book one author may fill: no more than keeps room for others, and for an admin's denial of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ca.runtime.policy_config import PolicyLimitsConfig
from ca.service.policy.candidates import Candidates
from ca.service.policy.compile import Draft
from ca.service.policy.refusals import invalid
from policy.state import State

SHARE = 2
"""All namespaces of one author together are one of so many parts of each limit."""

Sizes = tuple[int, int, int]


def check_share(
    made: Draft, pieces: Candidates, before: State, old: Candidates | None, namespaces: Collection[str], most: Sizes
) -> None:
    """Raises PolicyInvalid where what an author may write has grown beyond its share."""
    allowed = [limit // SHARE for limit in most]
    if all(size <= limit for size, limit in zip(_sizes(made.state, pieces, None), allowed, strict=True)):
        return
    now, was = _sizes(made.state, pieces, namespaces), _sizes(before, old, namespaces)
    for what, size, known, limit in zip(("objects", "rules", "bytes"), now, was, allowed, strict=True):
        if size > max(limit, known):
            message = f"{size:,} {what} in the namespaces of one author, and at most {limit:,} may be"
            raise invalid(made.steps[0].key, "P002", message, hint="an admin may write more")


def limits_of(limits: PolicyLimitsConfig) -> Sizes:
    """Objects, rules and bytes."""
    return limits.max_objects, limits.max_rules, limits.max_bytes


def _sizes(state: State, pieces: Candidates | None, namespaces: Collection[str] | None) -> Sizes:
    """Of some namespaces, or of all."""

    def mine(namespace: str) -> bool:
        return namespaces is None or namespace in namespaces

    def data() -> Iterator[int]:
        for namespace, piece in pieces.policies.items() if pieces is not None else ():
            if mine(namespace):
                yield len(piece.data)

    objects = sum(mine(key.namespace) for key in state.objects)
    rules = sum(len(policy.rules or ()) for policy in state.parsed.policies if mine(policy.namespace))
    return objects, rules, sum(data())
