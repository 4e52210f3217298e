"""Envoy's extension configuration discovery, v3: each proxy is given the policies of its own attested workload.

A name that means nobody's policies is answered with what refuses everything, not with silence: a proxy that hears
nothing goes by what it was given before. While the agent has no policies to give it says nothing at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from ca.errors import Exhausted
from ca.ports import Clock
from sds.cache import Cache, Subscription
from sds.envoy_answers import Answers, Found, Missing
from sds.envoy_service import EnvoyService, S
from sds.envoy_status import SdsClients
from sds.envoy_subscriber import Subscriber
from sds.policy_held import HeldPolicies
from sds.policy_unpushed import Unpushed
from sds.request_pace import RequestPace
from sds.workloads import Caller, Context, Workloads

if TYPE_CHECKING:
    from policy.envoy_shares import Shares
    from sds import policy_answers
    from sds.policy_filters import Key, Made
    from sds.policy_read import Matched, Policies
    from sds.views import BundleForms

LARGE_BYTES = 256 << 10
"""Answers beyond it are written to one stream of a workload after the other: whoever does not read them makes the
agent hold one, not one for each of its streams."""
READ_SECONDS = 30.0
"""Who has not read a large answer by then makes way for the others."""
MAX_NAMES = 64
"""Of one stream so many are answered: Envoy asks for one on each, and each is looked at with every new set."""
MAX_LARGE = 4
"""So many of them are kept for one workload, whose proxies choose what stands beside the filter."""


TOO_MANY = Missing(f"of one stream {MAX_NAMES} names are answered")


class EnvoyPolicies(EnvoyService):
    """The service. With `lasting_seconds` a proxy that hears nothing for so long refuses everything."""

    name = "envoy.service.extension.v3.ExtensionConfigDiscoveryService"
    methods = ("StreamExtensionConfigs", "DeltaExtensionConfigs", "FetchExtensionConfigs")
    needs_svid = False

    def __init__(
        self,
        *,
        peer_of: Callable[[Context], Caller],
        workloads: Workloads,
        cache: Cache,
        held: HeldPolicies,
        clients: SdsClients,
        clock: Clock,
        pace: RequestPace | None = None,
        lasting_seconds: float = 0.0,
        unpushed: Unpushed | None = None,
    ) -> None:
        super().__init__(peer_of=peer_of, workloads=workloads, clients=clients, clock=clock, pace=pace)
        self._cache = cache
        self._held = held
        self._unpushed = unpushed
        self._lasting_seconds = lasting_seconds
        self._made: WeakValueDictionary[Key, Made] = WeakValueDictionary()
        self._shares: Shares | None = None
        self._making: dict[Key, asyncio.Task[Made]] = {}
        self._large: WeakValueDictionary[str, WeakSet[Made]] = WeakValueDictionary()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        held.on_change.append(self._superseded)

    def stream(self, kind: type[S]) -> S:
        return kind(ttl_seconds=self._lasting_seconds)

    def settled(self, subscription: Subscription) -> bool:
        return self._held.in_force is not None or self._held.taken_away

    @asynccontextmanager
    async def turn(self, subscription: Subscription, answers: Answers) -> AsyncIterator[None]:
        if getattr(answers, "size", 0) <= LARGE_BYTES:
            yield
            return
        lock = self._turns.setdefault(subscription.share, asyncio.Lock())
        async with lock:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    yield
            except TimeoutError:
                raise Exhausted(
                    f"policies were sent and not read within {READ_SECONDS:g} s",
                    reason="ANSWER_NOT_READ",
                    hint="the proxy hangs, or it is no proxy",
                ) from None

    async def answers(self, subscription: Subscription, stream: Subscriber) -> policy_answers.PolicyAnswers:
        """Made anew where the policies, or what the caller is, changed meanwhile."""
        if self._unpushed is not None:
            self._unpushed.look(asked=True)
        while True:
            basis = self._basis()
            caller = self._caller(subscription)
            made = await self._answers(basis, caller, stream, subscription.share)
            if basis is self._basis() and caller == self._caller(subscription):
                self._give(made, stream.seen)
                return made

    def _give(self, made: policy_answers.PolicyAnswers, before: Answers | None) -> None:
        """What verifies tokens by other rules now did so by those before until a moment ago."""
        policies = self._held.in_force
        if made is before or policies is None:
            return
        given = {one.tokens for one in made.made if one.tokens}
        for name in given:
            self._held.given.give(name, policies, made.caller.bundles)
        gone = {one.tokens for one in getattr(before, "made", ())} - given
        self._held.given.withdraw(self._clock.monotonic(), gone)

    def _superseded(self) -> None:
        """What was given is given no longer, unless it is again."""
        self._held.given.withdraw(self._clock.monotonic())
        self.wake()

    def _basis(self) -> object:
        return self._held.in_force or self._held.detail

    def _caller(self, subscription: Subscription) -> policy_answers.Caller:
        from sds.policy_answers import Caller

        content = self._cache.content(subscription.view)
        ids = sorted({str(entry.spiffe_id) for entry in content.entries})
        return Caller(tuple(ids), subscription.view.selectors, content.bundles)

    async def _answers(
        self, basis: object, caller: policy_answers.Caller, stream: Subscriber, share: str
    ) -> policy_answers.PolicyAnswers:
        from sds.policy_answers import PolicyAnswers, owner_of

        known = stream.seen
        if (
            isinstance(known, PolicyAnswers)
            and known.basis is basis
            and known.caller == caller
            and known.owners.keys() == stream.subscribed
        ):
            return known
        policies = self._held.in_force
        names = sorted(stream.subscribed)
        owners = {name: owner_of(name, caller) for name in names[:MAX_NAMES]} | dict.fromkeys(names[MAX_NAMES:])
        found: dict[str, Found | Missing] = dict.fromkeys(names[MAX_NAMES:], TOO_MANY)
        made: list[Made] = []
        for name in names[:MAX_NAMES]:
            owner = owners[name]
            answer = await self._one(owner, caller, policies, share)
            if isinstance(answer, Found | Missing):
                found[name] = answer
            else:
                found[name] = answer.found
                made.append(answer)
        revision = policies.revision if policies is not None else 0
        return PolicyAnswers(basis, caller, revision, owners, found, made)

    async def _one(
        self, owner: policy_answers.Owner | None, caller: policy_answers.Caller, policies: Policies | None, share: str
    ) -> Found | Missing | Made:
        from sds.policy_answers import UNKNOWN
        from sds.policy_filters import refusing

        lasting = bool(self._lasting_seconds)
        if owner is None:
            return UNKNOWN
        if owner.why:
            return refusing(owner.resource, owner.why, lasting=lasting)
        if policies is None:
            if self._held.taken_away:
                return refusing(owner.resource, self._held.detail, lasting=lasting)
            return Missing(self._held.detail, pending=True)
        matched = policies.matched(owner.spiffe_id, caller.selectors)
        if matched.unknown:
            return refusing(owner.resource, matched.unknown, lasting=lasting)
        return await self._make(matched, owner, caller.bundles, share)

    async def _make(
        self, matched: Matched, owner: policy_answers.Owner, bundles: tuple[BundleForms, ...], share: str
    ) -> Found | Made:
        from policy.envoy_shares import Shares
        from sds.policy_filters import key_of, make, refusing

        lasting = bool(self._lasting_seconds)
        key = key_of(matched, owner.resource, bundles, lasting=lasting)
        known = self._made.get(key)
        if known is not None:
            return known
        large = self._large.setdefault(share, WeakSet())
        if len(large) >= MAX_LARGE:
            why = f"the proxies of this workload ask for more than {MAX_LARGE} large sets of filters"
            return refusing(owner.resource, why, lasting=lasting)
        making = self._making.get(key)
        if making is None:
            shares = self._shares = self._shares or Shares()
            making = asyncio.create_task(
                asyncio.to_thread(make, matched, owner.resource, bundles, shares, lasting=lasting)
            )
            self._making[key] = making
            making.add_done_callback(lambda _: self._making.pop(key, None))
        # Whoever hangs up must not take it from the others who wait for the same.
        found = self._made[key] = await asyncio.shield(making)
        if len(found.found.resource) > LARGE_BYTES:
            large.add(found)
            found.beside = large  # which lives as long as any of them
        return found
