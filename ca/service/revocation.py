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
from ca.service.follower import Applied
from ca.service.trust import Trust
from ca.store.values import AttestedAgent

logger = log.get("revocation")

GRACE_SECONDS = 0.2
"""Between telling an agent's streams why and closing its connections."""
_MOMENT = timedelta(seconds=1)
_NONE: frozenset[bytes] = frozenset()


class Revocation:
    """Listens to agents and to the follower; streams are told first, so that the agent learns the reason."""

    def __init__(self, *, gate: Gate, feed: Feed, trust: Trust, clock: Clock) -> None:
        self._gate = gate
        self._feed = feed
        self._trust = trust
        self._clock = clock
        self._roots: dict[TrustDomain, frozenset[bytes]] = {}
        for domain, bundle in trust.bundles.items():
            self._roots[domain] = _roots(bundle)

    def on_agent(self, agent_id: SpiffeId, agent: AttestedAgent | None) -> None:
        """A superseded serial ends streams; a ban or an eviction ends the connections there are too. On those that come
        later a banned agent is refused call by call, and an evicted one may be attested again."""
        self._feed.wake(agent_id)
        if agent is None:
            self._feed.forget(agent_id)
        if agent is None or agent.banned:
            reason = "AGENT_NOT_ATTESTED" if agent is None else "AGENT_BANNED"
            asyncio.get_running_loop().call_later(GRACE_SECONDS, _end, self._connected(agent_id), reason)

    def on_applied(self, applied: Applied) -> None:
        """New authorities must be known to the next handshake, gone ones end what rests on them; once for each pass
        over the change log, since a handshake's context is made of all bundles."""
        domains = self._trust.bundles.keys() | self._roots.keys() if applied.everything else applied.bundles
        before = {domain: self._roots.pop(domain, _NONE) for domain in domains}
        for domain in domains:
            if roots := _roots(self._trust.get(domain)):
                self._roots[domain] = roots
        for domain in sorted(domains):
            if before[domain] - self._roots.get(domain, _NONE):
                self._close_stranded(domain)
        if any(self._roots.get(domain, _NONE) != before[domain] for domain in domains):
            self._gate.refresh_tls()

    def _connected(self, agent_id: SpiffeId) -> list[Peer]:
        return [peer for peer in self._gate.connections() if peer.svid is not None and peer.svid.id == agent_id]

    def _close_stranded(self, trust_domain: TrustDomain) -> None:
        closed = self._gate.close_peers(lambda peer: self._is_stranded(peer, trust_domain), "ROOT_REVOKED")
        logger.info("authority left the bundle", trust_domain=trust_domain.name, closed_connections=closed)

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


def _roots(bundle: TrustBundle | None) -> frozenset[bytes]:
    return _NONE if bundle is None else frozenset(authority.certificate for authority in bundle.x509_authorities)


def _end(peers: list[Peer], reason: str) -> None:
    for peer in peers:
        peer.close(reason)
