"""Each authority with what is to come, who has it and what hangs on it: what an operator wants to see at one glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ca.authority.schedule import PRUNE_GRACE, activation, patience, prepare_at
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find, of_kind, of_server
from ca.ports import Clock
from ca.service.dependants import Dependants, Picture
from ca.service.readiness import Readiness
from ca.service.rotation import AuthorityManager
from ca.service.rotation_guard import RotationGuard
from ca.service.rotation_guard_port import Blocker
from ca.service.rotation_steps import LongestTtl
from ca.service.trust import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`hanging` of `alive` X.509-SVIDs hang on it (of a key: JWT-SVIDs); `behind` would be cut off if it signed now."""

    authority: Authority
    next_step: str = ""
    next_at: datetime | None = None
    last_safe_at: datetime | None = None
    agents_acked: int = 0
    agents: int = 0
    behind: Sequence[Blocker] = ()
    hanging: int = 0
    alive: int = 0
    last_hanging_not_after: datetime | None = None


class Outlooks:
    """Reads and changes nothing."""

    def __init__(
        self,
        *,
        manager: AuthorityManager,
        guard: RotationGuard,
        readiness: Readiness,
        dependants: Dependants,
        longest_ttl: LongestTtl,
        trust: Trust,
        server: str,
        clock: Clock,
    ) -> None:
        self._manager = manager
        self._guard = guard
        self._readiness = readiness
        self._dependants = dependants
        self._longest_ttl = longest_ttl
        self._trust = trust
        self.server = server
        self._clock = clock

    async def all(self, kind: AuthorityKind | None = None) -> list[Outlook]:
        """Of every server that shares the store; this one's have a schedule. Raises Unavailable."""
        picture = await self._dependants.look()
        known = self._manager.journal.authorities
        return [await self._one(one, known, picture) for one in known if kind in (None, one.kind)]

    async def of(self, authority: Authority) -> Outlook:
        """One of them."""
        return await self._one(authority, self._manager.journal.authorities, await self._dependants.look())

    async def _one(self, authority: Authority, known: Sequence[Authority], picture: Picture) -> Outlook:
        if authority.status == AuthorityState.REVOKED:
            return Outlook(authority=authority)
        states = self._readiness.of(authority)
        hanging = picture.of(authority, known)
        outlook = Outlook(
            authority=authority,
            agents_acked=sum(not state.reason for state in states),
            agents=len(states),
            hanging=hanging.number,
            alive=hanging.of,
            last_hanging_not_after=hanging.last_not_after,
        )
        if authority.status == AuthorityState.PREPARED:
            outlook = replace(outlook, behind=self._guard.behind(authority, picture, states))
        return await self._scheduled(outlook, of_kind(of_server(known, self.server), authority.kind))

    async def _scheduled(self, outlook: Outlook, mine: Sequence[Authority]) -> Outlook:
        authority = outlook.authority
        if authority.server != self.server:
            return outlook
        active = find(mine, AuthorityState.ACTIVE, authority.kind)
        if authority.status == AuthorityState.PREPARED and active is not None:
            longest = await self._longest_ttl(authority.kind)
            last = patience(active, authority, longest_ttl=longest, condemned=frozenset())
            at = activation(active, authority, self._hint())
            return replace(outlook, next_step="activate", next_at=min(active.not_after, at), last_safe_at=last)
        if authority is active and find(mine, AuthorityState.PREPARED, authority.kind) is None:
            return replace(outlook, next_step="prepare", next_at=prepare_at(authority))
        if authority.status == AuthorityState.OLD:
            return replace(outlook, next_step="prune", next_at=authority.not_after + PRUNE_GRACE)
        return outlook

    def _hint(self) -> timedelta:
        return timedelta(seconds=self._trust.own.refresh_hint_seconds)
