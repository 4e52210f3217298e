"""States and changes of authorities in words, for refusals: what it is, since when, and what happened meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ca.authority.state import Authority, AuthorityState

_TAINTED_FIRST = "`caadmin ca rotate {kind} --taint` has another sign first, then taints and revokes it"
_ANOTHER = "`caadmin ca prepare {kind}` makes another in its place, and it is old then"
_ENDED = "it has left the bundle, and nothing is left to do"
_WAYS = {
    (AuthorityState.ACTIVE, "activate"): "it signs already, and nothing is left to do",
    (AuthorityState.ACTIVE, "taint"): _TAINTED_FIRST,
    (AuthorityState.ACTIVE, "revoke"): _TAINTED_FIRST,
    (AuthorityState.ACTIVE, "prune"): "`caadmin ca rotate {kind}` has another sign first, then prunes it",
    (AuthorityState.PREPARED, "activate"): _ANOTHER,
    (AuthorityState.PREPARED, "taint"): _ANOTHER,
    (AuthorityState.PREPARED, "revoke"): _ANOTHER,
    (AuthorityState.PREPARED, "prune"): _ANOTHER,
    (AuthorityState.OLD, "activate"): "`caadmin ca prepare {kind}` makes one that can sign",
    (AuthorityState.OLD, "taint"): "`caadmin ca revoke {kind} {name}` takes it out of the bundle",
    (AuthorityState.OLD, "revoke"): "`caadmin ca taint {kind} {name}`; revoke it when nothing hangs on it any more",
}
"""By what an authority is, and the step that does not fit."""


def clock_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def state_of(authority: Authority) -> str:
    """`is active since …`, `is old and tainted since …`."""
    if authority.tainted and authority.status != AuthorityState.REVOKED:
        return f"is {authority.status} and tainted{_since(authority.tainted_at)}"
    return f"is {authority.status}{_since(_entered(authority))}"


def way_on(authority: Authority, step: str) -> str:
    """What to do where `step` (`activate`, `taint`, `revoke`, `prune`) was refused for what the authority is."""
    way = _WAYS.get((authority.status, step), _ENDED)
    return way.format(kind=authority.kind, name=authority.authority_id)


def what_happened(before: Sequence[Authority], after: Sequence[Authority]) -> str:
    """How the same server's authorities differ between two looks at them; empty when they do not."""
    seen = {one.authority_id: one for one in before}
    said = [f"`{one.authority_id}` {state_of(one)}" for one in after if seen.pop(one.authority_id, None) != one]
    said += [f"`{gone}` is gone" for gone in seen]
    return ", ".join(said)


def _entered(authority: Authority) -> datetime | None:
    """When it came into its state. When one became old is the time that its successor was activated: not kept here."""
    return {
        AuthorityState.PREPARED: authority.published_at,
        AuthorityState.ACTIVE: authority.activated_at,
        AuthorityState.OLD: None,
        AuthorityState.REVOKED: authority.revoked_at,
    }[authority.status]


def _since(moment: datetime | None) -> str:
    return f" since {clock_time(moment)}" if moment else ""
