"""Keeps this server's signing authorities: on schedule by itself, and at an operator's word."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

from ca.authority.actions import Activate, Prune, Revoke, RevokeUpstream, Taint, TaintUpstream
from ca.authority.journal import Journal, sound
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find
from ca.errors import BurgeeError, FailedPrecondition
from ca.identity.bundle import JwtAuthority, TrustBundle
from ca.ports import Clock, KeyManager
from ca.runtime.health import Problem
from ca.service.follower import Follower
from ca.service.rotation_guard_port import Guard
from ca.service.rotation_guarding import Guarding
from ca.service.rotation_journal import JournalKeeper
from ca.service.rotation_keys import AuthorityKeys
from ca.service.rotation_maker import Maker, RotationSettings
from ca.service.rotation_metrics import show
from ca.service.rotation_plan import Plan, Step
from ca.service.rotation_schedule import KINDS, Schedule
from ca.service.rotation_signing import SigningNow
from ca.service.rotation_steps import LongestTtl, Steps
from ca.service.signing import JwtSigning, X509Signing
from ca.service.trust import Trust
from ca.service.upstream_follow import UpstreamFollow
from ca.service.upstream_link import UpstreamLink
from ca.store.store import Store

__all__ = ["AuthorityManager", "RotationSettings"]

T = TypeVar("T")


class AuthorityManager:
    """Implements ca.service.signing.Authority. `start` first, then `run`.

    What an operator asks for is carried out whole even if the caller goes away, and only on the state that was seen
    when it was asked: of two operators at once one is told what the other did (FailedPrecondition AUTHORITY_STATE).
    Steps that cut somebody off are refused (ROTATION_BLOCKED) without `force`.
    """

    def __init__(
        self,
        *,
        settings: RotationSettings,
        store: Store,
        keys: KeyManager,
        follower: Follower,
        guard: Guard,
        longest_ttl: LongestTtl,
        clock: Clock,
        pool: ThreadPoolExecutor,
        upstream: UpstreamLink | None = None,
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._trust = follower.trust
        self._journal = JournalKeeper(
            store=store,
            follower=follower,
            trust_domain=settings.trust_domain,
            server=settings.server,
            clock=clock,
        )
        self._guarding = Guarding(guard, clock)
        self._keys = AuthorityKeys(keys=keys, journal=self._journal, clock=clock)
        self._steps = Steps(
            journal=self._journal,
            maker=Maker(
                settings=settings, keys=keys, records=store.issuance, upstream=upstream, clock=clock, pool=pool
            ),
            keys=self._keys,
            guarding=self._guarding,
            longest_ttl=longest_ttl,
            clock=clock,
        )
        self._schedule = Schedule(
            journal=self._journal, steps=self._steps, keys=self._keys, guarding=self._guarding, clock=clock
        )
        self._signing = SigningNow(clock=clock, remote=keys.remote)
        self.follow_upstream = UpstreamFollow(
            journal=self._journal,
            link=upstream,
            steps=self._steps,
            wake=lambda: self._schedule.wake(AuthorityKind.X509),
            clock=clock,
        )
        self._running: set[asyncio.Task[Any]] = set()
        self._journal.on_change = self._take_up
        self._trust.on_change(self._on_bundle)

    @property
    def authorities(self) -> tuple[Authority, ...]:
        """This server's authorities of both kinds, revoked ones too until their end."""
        return self._journal.own

    @property
    def journal(self) -> Journal:
        """Everything that is written down, of all servers."""
        return self._journal.journal

    @property
    def roots_to_build_on(self) -> frozenset[str]:
        """Those of the upstream that can still be above something new; none without an upstream."""
        return sound(self.journal, self._journal.server, now=self._clock.now())

    @property
    def guard(self) -> Guard:
        """Who is asked before a step that could cut somebody off."""
        return self._guarding.guard

    @guard.setter
    def guard(self, guard: Guard) -> None:
        self._guarding.guard = guard

    @property
    def has_upstream(self) -> bool:
        return self._upstream is not None

    async def start(self) -> None:
        """Takes up what the store remembers and this server still has the keys of; makes what is missing.

        An authority whose key is gone signs no more, and stays in the bundle until its end. Raises why, when there is
        nothing to sign with afterwards.
        """
        if self._upstream is not None:
            await self._upstream.start()
        await self._journal.change(lambda fresh: fresh)  # the bundle, too, is to hold what the journal says
        self._guarding.refresh_hint = _hint(self._trust)
        await self._schedule.tick()
        for kind in KINDS:
            error = self._schedule.problem(kind)
            if error is not None and find(self.authorities, AuthorityState.ACTIVE, kind) is None:
                raise error

    async def run(self) -> None:
        """Keeps the schedule, and follows the upstream, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind in KINDS:
                group.create_task(self._schedule.keep(kind))
            group.create_task(self.follow_upstream.run())
            if self._upstream is not None:
                group.create_task(self._upstream.run())

    async def tick(self) -> None:
        """Does what is due now. Raises Unavailable when keys or store are out of reach; nothing is half done then."""
        await self._schedule.tick()

    def x509(self) -> X509Signing:
        return self._signing.x509()

    def jwt(self) -> JwtSigning:
        return self._signing.jwt()

    async def plan(self, step: Step, *, kind: AuthorityKind = AuthorityKind.X509) -> Plan:
        """What a step would do and whom it would cut off. Nothing happens; raises as the step itself would."""
        return await self._steps.plan(step, kind=kind)

    async def prepare(self, kind: AuthorityKind) -> Authority:
        """A new one, published, in place of the one that was prepared before."""
        made = (await self._whole(self._steps.prepare([kind])))[kind]
        if isinstance(made, BurgeeError):
            raise made
        return made

    async def activate(self, kind: AuthorityKind, authority_id: str, *, force: bool = False) -> Authority:
        """The prepared one signs from now on."""
        return await self._take(Activate(authority_id), kind, force=force)

    async def taint(self, kind: AuthorityKind, authority_id: str) -> Authority:
        """What an old one signed is replaced everywhere."""
        return await self._take(Taint(authority_id), kind)

    async def revoke(self, kind: AuthorityKind, authority_id: str, *, force: bool = False) -> Authority:
        """A tainted one leaves the bundle now."""
        return await self._take(Revoke(authority_id), kind, force=force)

    async def prune(self, kind: AuthorityKind, authority_id: str, *, force: bool = False) -> Authority:
        """An old one leaves the bundle before its end. Returns what it was."""
        return await self._take(Prune(authority_id), kind, force=force)

    async def taint_upstream(self, subject_key_id: str) -> tuple[Authority, ...]:
        """A root of the upstream, with all that hangs on it: no active authority may. Returns what hung on it."""
        return await self._take_upstream(TaintUpstream(subject_key_id))

    async def revoke_upstream(self, subject_key_id: str, *, force: bool = False) -> tuple[Authority, ...]:
        """A tainted root of the upstream leaves the bundle now. Returns what hung on it."""
        return await self._take_upstream(RevokeUpstream(subject_key_id), force=force)

    async def publish_jwt(self, key: JwtAuthority) -> Sequence[JwtAuthority]:
        """A JWT authority of a server below: handed upwards where the upstream keeps them. Returns what the bundle is
        to hold besides. Raises Unavailable when the upstream is out of reach."""
        return (key,) if self._upstream is None else await self._upstream.publish(key)

    def check(self) -> Problem | None:
        """For readiness: whether an SVID of each kind could be signed now."""
        try:
            self.x509()
            self.jwt()
        except BurgeeError as error:
            return Problem(reason=error.reason, detail=error.detail, hint=error.hint)
        return None

    def warning(self) -> Problem | None:
        """What will keep this server from signing unless it passes, with the time; the first of them."""
        return next(iter(self._schedule.warnings()), None)

    def upstream_warning(self) -> Problem | None:
        """What is wrong between this server and its upstream."""
        error = None if self._upstream is None else self._upstream.problem()
        return None if error is None else Problem(reason=error.reason, detail=error.detail, hint=error.hint)

    async def _take(self, step: Step, kind: AuthorityKind, *, force: bool = False) -> Authority:
        (before,) = (await self._whole(self._planned(step, kind, force))).targets
        place = (before.server, before.authority_id)
        known = self.journal.authorities
        return next((one for one in known if (one.server, one.authority_id) == place), before)

    async def _take_upstream(
        self, step: TaintUpstream | RevokeUpstream, *, force: bool = False
    ) -> tuple[Authority, ...]:
        if self._upstream is None:
            raise FailedPrecondition("upstream authority is not configured", reason="NO_UPSTREAM")
        return (await self._whole(self._planned(step, AuthorityKind.X509, force))).targets

    async def _planned(self, step: Step, kind: AuthorityKind, force: bool) -> Plan:
        plan = await self._steps.plan(step, kind=kind)
        await self._steps.carry_out(plan, force=force)
        return plan

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """To its end, whatever becomes of the caller."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: when the caller was cancelled there is nobody else to take it
        for kind in KINDS:
            self._schedule.wake(kind)

    def _on_bundle(self, bundle: TrustBundle) -> None:
        """Another server may have changed it, and with it the journal."""
        if bundle.trust_domain == self._trust.trust_domain:
            self._guarding.refresh_hint = timedelta(seconds=bundle.refresh_hint_seconds)
            for kind in KINDS:
                self._schedule.wake(kind)

    def _take_up(self) -> None:
        self._signing.take_up(self.authorities, self._keys.signers)
        show(self.authorities, self.journal)


def _hint(trust: Trust) -> timedelta:
    own = trust.get(trust.trust_domain)
    return timedelta(seconds=own.refresh_hint_seconds if own is not None else 0)
