"""What ends a connection's rights at once: a ban, an eviction, a root that left its bundle."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from ca.errors import Unauthenticated
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.svid import verify_x509_svid
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.gate import Gate, Peer
from ca.service.feed import Feed
from ca.service.trust import Trust
from ca.store.values import AttestedAgent

logger = log.get("revocation")

GRACE_SECONDS = 0.2
"""Between telling an agent's streams why and closing its connections."""
_MOMENT = timedelta(seconds=1)


class Revocation:
    """Listens to agents and bundles; streams are told first, so that the agent learns the reason."""

    def __init__(self, *, gate: Gate, feed: Feed, trust: Trust, clock: Clock) -> None:
        self._gate = gate
        self._feed = feed
        self._trust = trust
        self._clock = clock
        self._roots: dict[TrustDomain, frozenset[bytes]] = {}
        for bundle in trust.bundles.values():
            self._roots[bundle.trust_domain] = _roots(bundle)

    def on_agent(self, agent_id: SpiffeId, agent: AttestedAgent | None) -> None:
        """A superseded serial ends streams; a ban or an eviction ends connections too."""
        self._feed.wake(agent_id)
        if agent is None:
            self._feed.forget(agent_id)
        if agent is None or agent.banned:
            reason = "AGENT_NOT_ATTESTED" if agent is None else "AGENT_BANNED"
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._close_agent, agent_id, reason)

    def on_bundle(self, bundle: TrustBundle) -> None:
        """New authorities must be known to the next handshake; gone ones end what rests on them."""
        before = self._roots.get(bundle.trust_domain, frozenset())
        now = self._roots[bundle.trust_domain] = _roots(bundle)
        if now != before:
            self._gate.reload_tls()
        if before - now:
            closed = self._gate.close_peers(lambda peer: self._is_stranded(peer, bundle.trust_domain), "ROOT_REVOKED")
            logger.info("authority left the bundle", trust_domain=bundle.trust_domain.name, closed_connections=closed)

    def _close_agent(self, agent_id: SpiffeId, reason: str) -> None:
        self._gate.close_peers(lambda peer: peer.svid is not None and peer.svid.id == agent_id, reason)

    def _is_stranded(self, peer: Peer, trust_domain: TrustDomain) -> bool:
        """Expiry is not this one's business: a connection whose certificate has expired gets its answers first."""
        if peer.svid is None or peer.svid.id.trust_domain != trust_domain:
            return False
        try:
            verify_x509_svid(
                peer.svid.chain, self._trust.bundles, now=min(self._clock.now(), peer.svid.not_after - _MOMENT)
            )
        except Unauthenticated:
            return True
        return False


def _roots(bundle: TrustBundle) -> frozenset[bytes]:
    return frozenset(authority.certificate for authority in bundle.x509_authorities)
