"""Takes expired authorities out of our own bundle: those that were appended, or published by servers below this one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from ca.errors import BurgeeError
from ca.identity.bundle import TrustBundle
from ca.identity.certificate import load_authority
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock
from ca.runtime import log
from ca.service.follower import Follower
from ca.store.store import Store

logger = log.get("bundle-pruning")

EVERY_SECONDS = 3600.0
KEPT = timedelta(hours=24)
"""After its end, for verifiers whose clocks are behind; SPIRE's value."""


class BundlePruning:
    """The authorities of this server go by the rotation's schedule, and would go here at the latest."""

    def __init__(self, *, store: Store, trust_domain: TrustDomain, follower: Follower, clock: Clock) -> None:
        self._store = store
        self._trust_domain = trust_domain
        self._follower = follower
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled; what the store refuses now is tried again an hour later."""
        while True:
            await self._clock.sleep(EVERY_SECONDS)
            try:
                await self.once()
            except BurgeeError as error:
                logger.warning("bundle could not be pruned", reason=error.reason, detail=error.detail)

    async def once(self) -> None:
        before = await self._store.bundles.get(self._trust_domain)
        ended_before = self._clock.now() - KEPT
        if before is None or pruned(before, ended_before) == before:
            return
        await self._store.bundles.update(self._trust_domain, lambda bundle: pruned(bundle, ended_before))
        await self._follower.catch_up()
        logger.info("expired authorities left the bundle")


def pruned(bundle: TrustBundle, ended_before: datetime) -> TrustBundle:
    """The bundle without what ended before this time; a JWT key without an end stays."""
    return replace(
        bundle,
        x509_authorities=tuple(
            authority
            for authority in bundle.x509_authorities
            if load_authority(authority.certificate).not_valid_after_utc > ended_before
        ),
        jwt_authorities=tuple(
            authority
            for authority in bundle.jwt_authorities
            if authority.expires_at is None or authority.expires_at > ended_before
        ),
    )
