"""A revision of the book, read and compiled: one value that is swapped as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from policy.book_values import Key, Stored
from policy.model import Mesh, Target
from policy.parse import PolicySet, parse_object
from policy.snapshot import Snapshot, compile_set


class _AnyHost(frozenset[str]):
    """Has every host: what is in the book was checked when it was written, and is checked when it is fetched."""

    def __contains__(self, item: object) -> bool:
        return True


ANY_HOST: frozenset[str] = _AnyHost()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`parsed` is everything in the order of kinds and names, so that equal books are equal states."""

    revision: int
    objects: Mapping[Key, Stored]
    parsed: PolicySet
    snapshot: Snapshot
    mesh: Mesh
    targets: tuple[Target, ...] = ()
    """All that the snapshot decides for."""
    parts: Mapping[Key, tuple[str, PolicySet]] = field(default_factory=dict, repr=False, compare=False)
    """Of each object its etag and what was read of it, to be used again."""


def read(stored: Stored, *, jwks_hosts: frozenset[str] = ANY_HOST) -> PolicySet:
    """One object. Raises Refused."""
    return parse_object(stored.body, str(stored.key), jwks_hosts=jwks_hosts)


def state_of(
    revision: int,
    objects: Mapping[Key, Stored],
    mesh: Mesh,
    targets: Callable[[tuple[Target, ...]], Iterable[Target]] = tuple,
    *,
    previous: State | None = None,
) -> State:
    """Reads and compiles. Of `previous`, what was read of an object that did not change is the same object here, and
    so is what was compiled of it. `targets` says who can be called, given what the Workload objects describe; by
    default that and no more. Raises Refused."""
    known = previous.parts if previous is not None else {}
    parts: dict[Key, tuple[str, PolicySet]] = {}
    for key in sorted(objects, key=_place):
        stored, old = objects[key], known.get(key)
        parts[key] = old if old is not None and old[0] == stored.etag else (stored.etag, read(stored))
    parsed = _together(part for _, part in parts.values())
    all_targets = tuple(targets(parsed.targets))
    snapshot = compile_set(
        parsed.policies,
        mesh,
        all_targets,
        peers=parsed.peer_authentications,
        previous=previous.snapshot if previous is not None else None,
    )
    return State(
        revision=revision,
        objects=objects,
        parsed=parsed,
        snapshot=snapshot,
        mesh=mesh,
        targets=all_targets,
        parts=parts,
    )


def _place(key: Key) -> tuple[str, str, str]:
    """What keys are sorted by, without asking them."""
    return key.kind, key.namespace, key.name


def _together(parts: Iterable[PolicySet]) -> PolicySet:
    found = list(parts)
    return PolicySet(
        policies=tuple(item for part in found for item in part.policies),
        request_authentications=tuple(item for part in found for item in part.request_authentications),
        peer_authentications=tuple(item for part in found for item in part.peer_authentications),
        targets=tuple(item for part in found for item in part.targets),
        warnings=tuple(item for part in found for item in part.warnings),
    )
