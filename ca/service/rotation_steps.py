"""One step of a rotation at a time, for the schedule and for operators: planned on what was seen, carried out only if
that still holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from ca.authority.actions import (
    Action,
    Activate,
    Prune,
    Published,
    Retire,
    Revoke,
    RevokeUpstream,
    apply,
    forget_others,
)
from ca.authority.journal import Journal, condemned
from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import BurgeeError, FailedPrecondition
from ca.ports import Clock
from ca.runtime import log
from ca.service.rotation_guard_port import Blocker
from ca.service.rotation_guarding import Guarding, line, refuse
from ca.service.rotation_journal import JournalKeeper
from ca.service.rotation_keys import AuthorityKeys
from ca.service.rotation_maker import Made, Maker, Wanted
from ca.service.rotation_metrics import rotations
from ca.service.rotation_plan import Plan, Step, require_unchanged, targets

logger = log.get("authority")

LongestTtl = Callable[[AuthorityKind], Awaitable[timedelta]]
"""The longest that anything lives that an authority of this kind signs."""

_DONE = {
    "prepare": "prepared",
    "activate": "activated",
    "taint": "tainted",
    "revoke": "revoked",
    "prune": "pruned",
    "taint-upstream": "tainted with its root",
    "revoke-upstream": "revoked with its root",
}

SLOTS = (AuthorityState.ACTIVE, AuthorityState.PREPARED)


class Steps:
    """`doomed` are roots of the upstream that are about to be tainted: nothing new is built on them."""

    def __init__(
        self,
        *,
        journal: JournalKeeper,
        maker: Maker,
        keys: AuthorityKeys,
        guarding: Guarding,
        longest_ttl: LongestTtl,
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._maker = maker
        self._keys = keys
        self._guarding = guarding
        self._longest_ttl = longest_ttl
        self._clock = clock
        self.doomed: frozenset[str] = frozenset()

    @property
    def condemned(self) -> frozenset[str]:
        return condemned(self._journal.journal, self._journal.server, now=self._clock.now()) | self.doomed

    async def prepare(
        self, kinds: Sequence[AuthorityKind], *, must_outlast: datetime | None = None
    ) -> dict[AuthorityKind, Authority | BurgeeError]:
        """New authorities of these kinds: keys made, then one change that writes down and publishes all of them.

        For each kind the authority, or why it could not be made. An X.509 authority from the upstream that ends no
        later than `must_outlast` would be of no use. Raises Unavailable when the store is out of reach, and
        FailedPrecondition (AUTHORITY_STATE) when somebody else changed them meanwhile.
        """
        with self._keys.new(kinds) as key_ids:
            seen = await self._journal.read()
            await self._keys.note(key_ids)
            made = {kind: await self._made(kind, key_id, must_outlast) for kind, key_id in key_ids.items()}
            ready = [one for one in made.values() if isinstance(one, Made)]
            self._keys.signers.update({one.authority.key_id: one.signer for one in ready})
            if ready:
                await self._journal.change(lambda fresh: self._published(fresh, seen, ready))
        for one in ready:
            self._tell("prepare", one.authority, "ok")
        return {kind: self._as_written(one) if isinstance(one, Made) else one for kind, one in made.items()}

    async def plan(
        self, step: Step, *, kind: AuthorityKind = AuthorityKind.X509, blockers: tuple[Blocker, ...] | None = None
    ) -> Plan:
        """What would happen, and who is in the way, unless the caller knows. Raises like
        `ca.authority.actions.apply`, and what the guard raises."""
        before = await self._journal.read()
        about = targets(before, step, kind=kind, server=self._journal.server)
        after = self._applied(before, step)
        if blockers is not None:
            return Plan(step=step, before=before, after=after, targets=about, blockers=blockers)
        blockers = ()
        if isinstance(step, Activate):
            blockers = await self._guarding.before_activation(about[0])
        elif isinstance(step, Revoke | Prune | RevokeUpstream):
            blockers = await self._guarding.before_removal(about)
        return Plan(step=step, before=before, after=after, targets=about, blockers=blockers)

    async def carry_out(self, plan: Plan, *, force: bool = False, forced_by: str = "forced") -> None:
        """Raises FailedPrecondition: ROTATION_BLOCKED, or AUTHORITY_STATE when something happened since the plan."""
        if plan.blockers and not force:
            rotations.labels(plan.targets[0].kind.value, plan.name, "refused").inc()
            raise refuse(plan.command, plan.blockers)
        if isinstance(plan.step, Activate) and await self._keys.signer(plan.targets[0]) is None:
            await self.retire(plan.targets[0])
            raise FailedPrecondition(
                f"the private key of authority `{plan.targets[0].authority_id}` is gone",
                reason="KEY_MISSING",
                hint="prepare another one",
            )
        await self._journal.change(lambda fresh: self._as_planned(fresh, plan))
        for target in plan.targets:
            self._tell(plan.name, target, forced_by if plan.blockers else "ok", plan.blockers)
        await self._keys.sweep({target.kind for target in plan.targets})

    async def retire(self, authority: Authority) -> None:
        """Its key is gone: it signs no more, and stays in the bundle until its end."""
        logger.warning(
            "key of an authority is gone",
            kind=authority.kind,
            authority_id=authority.authority_id,
            reason="KEY_MISSING",
        )
        await self._journal.change(lambda fresh: self._applied(fresh, Retire(authority.authority_id)))

    async def retire_lost(self) -> None:
        """Finds the keys of what signs or is to sign; what has none is retired."""
        known = len(self._keys.signers)
        for authority in self._journal.own:
            if authority.status in SLOTS and await self._keys.signer(authority) is None:
                await self.retire(authority)
        if len(self._keys.signers) > known:
            self._journal.on_change()

    async def forget_others(self) -> None:
        """What servers left that never came back; mostly there is nothing, and then nothing is written."""

        def forgotten(journal: Journal) -> Journal:
            return forget_others(journal, server=self._journal.server, now=self._clock.now())

        if forgotten(self._journal.journal) != self._journal.journal:
            await self._journal.change(forgotten)
            logger.info("authorities of servers that are gone were forgotten")

    async def longest_ttl(self, kind: AuthorityKind) -> timedelta:
        return await self._longest_ttl(kind)

    async def _made(self, kind: AuthorityKind, key_id: str, must_outlast: datetime | None) -> Made | BurgeeError:
        try:
            longest = int((await self._longest_ttl(kind)).total_seconds())
            wanted = Wanted(longest_svid_seconds=longest, condemned=self.condemned, must_outlast=must_outlast)
            return await self._maker.make(kind, key_id, wanted)
        except BurgeeError as error:
            rotations.labels(kind.value, "prepare", "failed").inc()
            return error

    def _published(self, fresh: Journal, seen: Journal, made: Sequence[Made]) -> Journal:
        after = fresh
        for one in made:
            require_unchanged(seen, fresh, kind=one.authority.kind, server=self._journal.server)
            after = self._applied(after, Published(one.authority, one.upstream))
        return after

    def _as_planned(self, fresh: Journal, plan: Plan) -> Journal:
        """The step on the journal as it is now; its own refusal, where it has one, says best what happened."""
        after = self._applied(fresh, plan.step)
        for target in plan.targets:
            require_unchanged(plan.before, fresh, kind=target.kind, server=target.server)
        return after

    def _applied(self, journal: Journal, action: Action) -> Journal:
        return apply(journal, action, server=self._journal.server, now=self._clock.now())

    def _as_written(self, made: Made) -> Authority:
        wanted = made.authority.authority_id
        return next((one for one in self._journal.own if one.authority_id == wanted), made.authority)

    def _tell(self, step: str, authority: Authority, result: str, blockers: Sequence[Blocker] = ()) -> None:
        rotations.labels(authority.kind.value, step, result).inc()
        done = _DONE[step]
        about = {
            "kind": authority.kind,
            "authority_id": authority.authority_id,
            "not_after": authority.not_after.isoformat(),
        }
        if not blockers:
            logger.info(f"authority {done}", **about)
            return
        logger.error(
            f"authority {done} over those whom that cuts off",
            **about,
            reason="ROTATION_OVERDUE" if result == "overdue" else "ROTATION_FORCED",
            count=len(blockers),
            cut_off=[line(blocker) for blocker in blockers[:10]],
        )
