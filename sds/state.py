"""What the agent remembers, typed: the part that survives a reboot and the part that need not.

The agent's own key and SVID and its trust domain's bundle are durable (`data_dir`): without them a node attested by
a one-time token could never come back. Entries, federated bundles, workload SVIDs with their keys and the resume
token go to the cache directory (tmpfs by default): they matter while a server is away, and a reboot ends the
processes that they were for. JWT-SVIDs are never stored.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from ca.errors import BurgeeError
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.burgee import node_pb2
from ca.proto.spire import types_pb2
from ca.runtime.log import get
from sds.feed import BUNDLE, ENTRY, ResumeToken, Snapshot
from sds.sealing import SealedStore
from sds.wire import bundle_from_wire, bundle_to_wire, entry_from_wire, entry_to_wire

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
log = get("sds.state")


@dataclass(frozen=True, kw_only=True)
class AgentSvid:
    """The agent's own identity. `chain` is DER, leaf first; `key_der` is PKCS#8.

    `issued_at` is when it arrived, by this machine's clock: renewal is planned from there, because notBefore is
    backdated. `reattestable` is the server's word on whether it wants a new attestation instead of a renewal.
    """

    id: SpiffeId
    chain: tuple[bytes, ...]
    key_der: bytes
    issued_at: datetime
    not_after: datetime
    reattestable: bool = False

    def private_key(self) -> PrivateKey:
        key = load_der_private_key(self.key_der, None)
        assert isinstance(key, PrivateKey)
        return key


@dataclass(frozen=True, kw_only=True)
class StoredSvid:
    """A workload's X.509-SVID with its key, and the revision of the entry it was issued for."""

    entry_id: str
    entry_revision: int
    chain: tuple[bytes, ...]
    key_der: bytes
    issued_at: datetime
    not_after: datetime


class AgentStore:
    """Saves and loads. Loading never fails: what is damaged or foreign is logged and counts as absent."""

    def __init__(self, *, durable: SealedStore, cache: SealedStore | None) -> None:
        self._durable = durable
        self._cache = cache

    def load_agent(self) -> AgentSvid | None:
        opened = self._durable.load("agent")
        return None if opened is None else _decode("agent", lambda: _agent_from_json(json.loads(opened)))

    def save_agent(self, svid: AgentSvid) -> None:
        self._durable.save("agent", json.dumps(_agent_to_json(svid)).encode())

    def load_bundle(self) -> TrustBundle | None:
        """The own trust domain's bundle as last received from a server or the first-trust source."""
        opened = self._durable.load("bundle")
        return None if opened is None else _decode("bundle", lambda: _bundle_from_bytes(opened))

    def save_bundle(self, bundle: TrustBundle) -> None:
        self._durable.save("bundle", bundle_to_wire(bundle).SerializeToString())

    def load_feed(self, agent: SpiffeId) -> Snapshot | None:
        """Entries, bundles and resume token, if they were saved for this agent."""
        opened = self._cache.load("feed", agent=agent) if self._cache else None
        return None if opened is None else _decode("feed", lambda: _feed_from_bytes(opened))

    def save_feed(self, agent: SpiffeId, feed: Snapshot) -> None:
        if self._cache:
            self._cache.save("feed", _feed_to_bytes(feed), agent=agent)

    def load_svids(self, agent: SpiffeId) -> tuple[StoredSvid, ...]:
        """Workload SVIDs, expired ones included: the caller knows the time."""
        opened = self._cache.load("svids", agent=agent) if self._cache else None
        if opened is None:
            return ()
        return _decode("svids", lambda: tuple(_stored_from_json(item) for item in json.loads(opened))) or ()

    def save_svids(self, agent: SpiffeId, svids: tuple[StoredSvid, ...]) -> None:
        """Replaces what was saved. Encoding and writing take a moment for thousands: call it in a thread."""
        if self._cache:
            self._cache.save("svids", json.dumps([_stored_to_json(s) for s in svids]).encode(), agent=agent)

    def erase(self) -> None:
        """After a ban: nothing of what was remembered can be read again."""
        if self._cache:
            self._cache.erase()
        self._durable.erase()
