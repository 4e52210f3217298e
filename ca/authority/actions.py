"""What can be done to a server's authorities, and what they are afterwards. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import AlreadyExists, FailedPrecondition, NotFound


@dataclass(frozen=True, slots=True)
class Prepare:
    """Wanted: make a key and publish its authority; then apply `Published`."""

    kind: AuthorityKind


@dataclass(frozen=True, slots=True)
class Published:
    """Done: this new authority (PREPARED) is in the bundle, in the same transaction that stores it."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class Activate:
    """The prepared authority begins to sign; the one that signed becomes OLD."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Retire:
    """An authority that cannot sign any more, for its private key is lost, becomes OLD."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Taint:
    """An OLD authority is no longer to be relied on: what it signed is replaced everywhere."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Prune:
    """An OLD authority past its end leaves the bundle, and its key is deleted."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """A tainted authority leaves the bundle before its end."""

    authority_id: str


Due = Prepare | Activate | Prune
"""What a schedule can ask for."""

Action = Published | Activate | Retire | Taint | Prune | Revoke
"""What can be applied."""


def apply(authorities: Sequence[Authority], action: Action) -> tuple[Authority, ...]:
    """The authorities after the action, in the same order; new ones come last.

    Raises NotFound (AUTHORITY_UNKNOWN), AlreadyExists (AUTHORITY_EXISTS) or FailedPrecondition (AUTHORITY_STATE) when
    the action does not fit the state; then nothing has changed.
    """
    if isinstance(action, Published):
        return _published(authorities, action.authority)
    target = _get(authorities, action.authority_id)
    match action:
        case Activate():
            _require(target.status == AuthorityState.PREPARED, target, "is not prepared")
            _require(not target.tainted, target, "is tainted")
            return tuple(_after_activation(authority, target) for authority in authorities)
        case Retire():
            return _with(authorities, replace(target, status=AuthorityState.OLD))
        case Taint():
            _require(target.status == AuthorityState.OLD, target, "is not old")
            return _with(authorities, replace(target, tainted=True))
        case Revoke():
            _require(target.tainted, target, "is not tainted")
    _require(target.status == AuthorityState.OLD, target, "is not old")
    return tuple(authority for authority in authorities if authority is not target)


def _published(authorities: Sequence[Authority], new: Authority) -> tuple[Authority, ...]:
    """A second preparation replaces the first, which stays in the bundle as OLD: somebody may have seen it."""
    if any(authority.authority_id == new.authority_id for authority in authorities):
        raise AlreadyExists(f"authority `{new.authority_id}` exists", reason="AUTHORITY_EXISTS")
    _require(new.status == AuthorityState.PREPARED, new, "is not prepared")
    return (*(_after_preparation(authority, new) for authority in authorities), new)


def _after_preparation(authority: Authority, new: Authority) -> Authority:
    if _same_slot(authority, new) and authority.status == AuthorityState.PREPARED:
        return replace(authority, status=AuthorityState.OLD)
    return authority


def _after_activation(authority: Authority, target: Authority) -> Authority:
    if authority is target:
        return replace(authority, status=AuthorityState.ACTIVE)
    if _same_slot(authority, target) and authority.status == AuthorityState.ACTIVE:
        return replace(authority, status=AuthorityState.OLD)
    return authority


def _same_slot(one: Authority, other: Authority) -> bool:
    return one.kind == other.kind and one.server == other.server


def _with(authorities: Sequence[Authority], changed: Authority) -> tuple[Authority, ...]:
    return tuple(changed if one.authority_id == changed.authority_id else one for one in authorities)


def _get(authorities: Sequence[Authority], authority_id: str) -> Authority:
    for authority in authorities:
        if authority.authority_id == authority_id:
            return authority
    raise NotFound(f"there is no authority `{authority_id}`", reason="AUTHORITY_UNKNOWN")


def _require(condition: bool, authority: Authority, problem: str) -> None:
    if not condition:
        raise FailedPrecondition(
            f"{authority.kind} authority `{authority.authority_id}` {problem}", reason="AUTHORITY_STATE"
        )
