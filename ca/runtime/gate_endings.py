"""Counts connections and what they came to, and tells of those that ended for a reason."""

from __future__ import annotations

from ca.runtime import log, metrics
from ca.runtime.peers import Peer

CONNECTIONS = metrics.gauge("gate_connections", "Connections that are open, by listener.", ["listener"])
ACCEPTED = metrics.counter("gate_accepted", "Connections that were accepted, by listener.", ["listener"])
REFUSED = metrics.counter(
    "gate_refused", "Connections the gate refused or ended, by listener and reason.", ["listener", "reason"]
)
_QUIET = frozenset({"", "CLIENT_CLOSED", "BACKEND_CLOSED", "GATE_CLOSED"})
"""Endings that are nobody's fault."""

_log = log.get("gate")


def tell(listener: str, reason: str, detail: str, *, remote: str, peer: Peer | None) -> None:
    """The gate refuses or ends a connection; nothing is told of those endings that are nobody's fault."""
    if reason in _QUIET:
        return
    REFUSED.labels(listener, reason).inc()
    _log.info(
        "connection ended",
        listener=listener,
        reason=reason,
        remote=remote,
        **({"detail": detail} if detail else {}),
        **({"spiffe_id": str(peer.svid.id)} if peer is not None and peer.svid is not None else {}),
    )
