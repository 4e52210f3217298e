"""What a write would make of the book: checked, read and compiled, without touching anything. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ca.errors import AlreadyExists, NotFound
from ca.runtime.policy_config import PolicyLimitsConfig
from ca.service.policy.refusals import Conflict, PolicyInvalid, changed, invalid
from ca.store.policies import Step
from policy.book_values import KINDS, WORKLOAD, Body, Change, Key, Stored, canonical, etag_of
from policy.model import Mesh, Target
from policy.parse import PolicySet, parse_object
from policy.problems import MAX_PROBLEMS, Problem, Refused, shown
from policy.state import State, state_of

Targets = Callable[[tuple[Target, ...]], Iterable[Target]]
"""Who can be called, given what the Workload objects describe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the configuration says of policies."""

    mesh: Mesh
    jwks_hosts: frozenset[str] = frozenset()
    limits: PolicyLimitsConfig = field(default_factory=PolicyLimitsConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The next revision, not written yet. `steps` is empty where nothing would change."""

    state: State
    steps: tuple[Step, ...]
    objects: tuple[Stored, ...]
    """What was asked for, as it would be; also where it is so already."""
    warnings: tuple[Problem, ...]


def draft(changes: Sequence[Change], state: State, settings: Settings, targets: Targets) -> Draft:
    """Raises PolicyInvalid, Conflict POLICY_OWNED, AlreadyExists, NotFound, FailedPrecondition POLICY_CHANGED."""
    _check_once(changes)
    for change in changes:
        _check_before(change, state.objects.get(change.key))
    bodies, read = _read(changes, settings)
    steps, objects = [], []
    for change in changes:
        before, body = state.objects.get(change.key), bodies.get(change.key)
        after = None if body is None else _stored(change, body, state.revision + 1)
        if before is not None and after is not None and (before.etag, before.owner) == (after.etag, after.owner):
            objects.append(before)
            continue
        steps.append(Step(before=before, after=after))
        objects += [after] if after is not None else []
    next_state = _next(state, steps, read, settings, targets) if steps else state
    return Draft(
        state=next_state,
        steps=tuple(steps),
        objects=tuple(objects),
        warnings=tuple(warning for part in read.values() for warning in part.warnings),
    )


def book_state(
    number: int, objects: Mapping[Key, Stored], settings: Settings, targets: Targets, previous: State | None
) -> State:
    """A revision as it is in the store. Raises Refused where it holds what this version cannot read."""
    return state_of(number, objects, settings.mesh, targets, previous=previous)


def _check_once(changes: Sequence[Change]) -> None:
    seen: set[Key] = set()
    for change in changes:
        if change.key in seen:
            raise invalid(change.key, "P009", f"{change.key} is changed twice in one write")
        seen.add(change.key)
        if change.key.kind not in KINDS:
            raise invalid(change.key, "P007", f"objects of kind {shown(change.key.kind)} are not kept")


def _check_before(change: Change, before: Stored | None) -> None:
    """What is there must be what the caller thinks is there, and the caller's to change."""
    if before is None:
        if change.if_match is not None:
            raise changed(str(change.key))
        if change.body is None:
            raise not_found(change.key)
        return
    if change.must_be_new:
        raise AlreadyExists(f"{change.key} is there already", reason="POLICY_EXISTS", hint="change it with its etag")
    if change.if_match is not None and change.if_match != before.etag:
        raise changed(str(change.key))
    if before.owner and before.owner != change.owner and not change.force:
        raise Conflict(
            f"{change.key} belongs to {shown(before.owner)}",
            reason="POLICY_OWNED",
            hint="change it where it is applied from, or take it over: `--take-over`, over REST `force`",
        )


def not_found(key: Key) -> NotFound:
    """There is no such object."""
    return NotFound(f"there is no {key}", reason="POLICY_NOT_FOUND")


def _read(changes: Sequence[Change], settings: Settings) -> tuple[dict[Key, Body], dict[Key, PolicySet]]:
    """Every body, read; with all that is wrong in any of them."""
    bodies: dict[Key, Body] = {}
    parts: dict[Key, PolicySet] = {}
    problems: list[Problem] = []
    for change in changes:
        if change.body is None:
            continue
        try:
            _check_size(change.key, change.body, settings.limits.max_object_bytes)
            parts[change.key] = parse_object(change.body, str(change.key), jwks_hosts=settings.jwks_hosts)
            bodies[change.key] = _named(change.key, change.body)
        except (Refused, PolicyInvalid) as error:
            problems += error.problems
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise PolicyInvalid(problems)
    return bodies, parts


def _check_size(key: Key, body: Body, most: int) -> None:
    """Before it is read, which takes longer."""
    try:
        size = len(canonical(body))
    except (ValueError, TypeError, RecursionError):
        raise invalid(key, "P001", "the object cannot be written as JSON") from None
    if size > most:
        raise invalid(key, "P002", f"{size:,} bytes, and at most {most:,} may be", hint="write several objects")


def _named(key: Key, body: Body) -> Body:
    """The body, whose names are those of its key."""
    metadata = body["metadata"]
    named = Key(kind=body["kind"], namespace=metadata["namespace"], name=metadata["name"])
    if named != key:
        raise invalid(key, "P008", f"the object is {named}, and not {key}", pointer="/metadata")
    return body


def _stored(change: Change, body: Body, number: int) -> Stored:
    return Stored(key=change.key, body=body, etag=etag_of(body), revision=number, owner=change.owner)


def _next(
    state: State, steps: Sequence[Step], read: Mapping[Key, PolicySet], settings: Settings, targets: Targets
) -> State:
    objects = dict(state.objects)
    for step in steps:
        if step.after is None:
            del objects[step.key]
        else:
            objects[step.key] = step.after
    limits, first = settings.limits, steps[0].key
    if len(objects) > max(limits.max_objects, len(state.objects)):
        raise invalid(first, "P002", f"{len(objects):,} objects, and at most {limits.max_objects:,} may be")
    parts = dict(state.parts)
    parts.update({step.key: (step.after.etag, read[step.key]) for step in steps if step.after is not None})
    before = sum(len(policy.rules or ()) for policy in state.parsed.policies)
    less = _rules(state.parts[step.key][1] for step in steps if step.before is not None)
    rules = before - less + _rules(read[step.key] for step in steps if step.after is not None)
    if rules > max(limits.max_rules, before):
        raise invalid(first, "P002", f"{rules:,} rules, and at most {limits.max_rules:,} may be")
    known = State(
        revision=state.revision,
        objects=state.objects,
        parsed=state.parsed,
        snapshot=state.snapshot,
        mesh=state.mesh,
        parts=parts,
    )
    made = state_of(state.revision + 1, objects, settings.mesh, targets, previous=known)
    _check_places([step.key for step in steps if step.after is not None and step.key.kind == WORKLOAD], made)
    return made


def _check_places(written: Sequence[Key], state: State) -> None:
    """One ID, one place: an agent could not tell whose policies are meant. Of what is there already only who writes it
    again hears."""
    places: defaultdict[str, set[tuple[object, ...]]] = defaultdict(set)
    for target in state.parsed.targets if written else ():
        places[target.spiffe_id].add((target.namespace, tuple(sorted(target.labels))))
    for key in written:
        for target in state.parts[key][1].targets:
            if len(places[target.spiffe_id]) > 1:
                raise Conflict(
                    f"{key} gives {shown(target.spiffe_id)} another namespace or other labels than a second Workload",
                    reason="WORKLOAD_CONTRADICTED",
                    hint="one of them is enough, or the same in each; a pod's own are attested and need none",
                )


def _rules(parts: Iterable[PolicySet]) -> int:
    return sum(len(policy.rules or ()) for part in parts for policy in part.policies)
