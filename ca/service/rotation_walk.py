"""The next step of a whole rotation, told from what the authorities are: anybody can go on where another stopped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ca.authority.state import Authority, AuthorityKind, AuthorityState, find, of_kind
from ca.errors import FailedPrecondition, NotFound


class WalkStep(StrEnum):
    """What is to be done next."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    TAINT = "taint"
    REVOKE = "revoke"
    PRUNE = "prune"
    FINISHED = ""

    @property
    def is_last(self) -> bool:
        return self in (WalkStep.REVOKE, WalkStep.PRUNE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """`replacing` is what goes, `successor` what comes or has come, `target` what the step is about. `root`: the step
    is about the upstream's root above the target."""

    step: WalkStep
    replacing: Authority
    successor: Authority | None = None
    target: Authority | None = None
    root: bool = False


def to_be_replaced(own: Sequence[Authority], kind: AuthorityKind, *, taint: bool = False) -> str:
    """The ID of the authority that signs, where none is named. Raises FailedPrecondition (NO_AUTHORITY).

    Whoever begins anew to cut off a stolen key, though one is tainted and not revoked yet, most likely wants to go on
    with that one: the good key that signs by now would be replaced, and the stolen one stay (ROTATION_UNFINISHED).
    """
    begun = [one.authority_id for one in of_kind(own, kind) if one.status == AuthorityState.OLD and one.tainted]
    if taint and begun:
        raise FailedPrecondition(
            f"{kind} authority `{begun[0]}` is tainted and not yet revoked",
            reason="ROTATION_UNFINISHED",
            hint=f"go on with `caadmin ca rotate {kind} --taint --replacing {begun[0]}`; to replace "
            "the one that signs, name it",
        )
    active = find(own, AuthorityState.ACTIVE, kind)
    if active is None:
        raise FailedPrecondition(
            f"there is no active {kind} authority to be replaced",
            reason="NO_AUTHORITY",
            hint="the server makes one by itself; its log says what keeps it",
        )
    return active.authority_id


def walk(
    own: Sequence[Authority],
    *,
    kind: AuthorityKind,
    replacing: str,
    taint: bool,
    keep: bool,
    roots: Collection[str] = (),
) -> Walk:
    """The next step for a server with these authorities, below an upstream with these `roots` that can be built on.

    `replacing` names the authority that goes: the active one first, then the old one that it became. Raises NotFound
    (AUTHORITY_UNKNOWN) and FailedPrecondition (AUTHORITY_STATE, ROOT_IS_SHARED: before anything is done, if it can be
    known by then).
    """
    mine = of_kind(own, kind)
    active = find(mine, AuthorityState.ACTIVE, kind)
    old = next((one for one in mine if one.authority_id == replacing), None)
    if old is None:
        raise NotFound(
            f"this server has no {kind} authority `{replacing}`: it was replaced, or there never was one",
            reason="AUTHORITY_UNKNOWN",
            hint="`caadmin ca status` shows those that there are",
        )
    if old.status == AuthorityState.PREPARED:
        raise FailedPrecondition(
            f"{kind} authority `{replacing}` is prepared: it replaces, and is not replaced",
            reason="AUTHORITY_STATE",
            hint="leave out --replacing, or name the authority that signs",
        )
    if old.status == AuthorityState.ACTIVE:
        prepared = find(mine, AuthorityState.PREPARED, kind)
        if prepared is not None and prepared.tainted:
            prepared = None
        if taint and old.upstream_authority_id:
            ahead = set(roots) if prepared is None else {prepared.upstream_authority_id}
            if ahead <= {old.upstream_authority_id}:
                raise _shared(old)
        if prepared is None:
            return Walk(step=WalkStep.PREPARE, replacing=old)
        return Walk(step=WalkStep.ACTIVATE, replacing=old, successor=prepared, target=prepared)
    if old.status == AuthorityState.REVOKED:
        return Walk(step=WalkStep.FINISHED, replacing=old, successor=active)
    return _after_activation(old, active, taint=taint, keep=keep)


def _after_activation(old: Authority, active: Authority | None, *, taint: bool, keep: bool) -> Walk:
    root = bool(old.upstream_authority_id) and (taint or old.tainted)
    if root and active is not None and active.upstream_authority_id == old.upstream_authority_id:
        raise _shared(old)
    if taint and not old.tainted:
        return Walk(step=WalkStep.TAINT, replacing=old, successor=active, target=old, root=root)
    if keep:
        return Walk(step=WalkStep.FINISHED, replacing=old, successor=active)
    step = WalkStep.REVOKE if old.tainted else WalkStep.PRUNE
    return Walk(step=step, replacing=old, successor=active, target=old, root=root and old.tainted)


def _shared(old: Authority) -> FailedPrecondition:
    return FailedPrecondition(
        f"root `{old.upstream_authority_id}` of the upstream is above both `{old.authority_id}` and its successor",
        reason="ROOT_IS_SHARED",
        hint=f"rotate the upstream's root first, then `caadmin ca prepare {old.kind}`; a stolen key of an intermediate "
        "is cut off by its root alone",
    )
