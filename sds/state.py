"""What the agent remembers, typed: the part that survives a reboot and the part that need not.

The agent's own key and SVID and its trust domain's bundle are durable (`data_dir`): without them a node attested by
a one-time token could never come back. Entries, federated bundles, workload SVIDs with their keys and the resume
token go to the cache directory (tmpfs by default): they matter while a server is away, and a reboot ends the
processes that they were for. JWT-SVIDs are never stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key
from google.protobuf.message import DecodeError

from ca.errors import BurgeeError, FailedPrecondition
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import SpiffeId
from ca.ports import KeyType
from ca.proto.burgee import node_pb2
from ca.proto.spire import types_pb2
from ca.runtime.log import get
from sds.config import AgentConfig
from sds.dropped import Dropped
from sds.feed import BUNDLE, ENTRY, POLICY, ResumeToken, Snapshot
from sds.policy_held import digest
from sds.sealing import SealedStore, cache_key, durable_key
from sds.wire import bundle_from_wire, bundle_to_wire, entry_to_wire, read_resources

ATTESTING = "attesting"
CAME = f"{POLICY} that came"
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
    key_der: bytes = field(repr=False)
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
    key_der: bytes = field(repr=False)
    issued_at: datetime
    not_after: datetime


class AgentStore:
    """Saves and loads. Loading never fails: what is damaged or foreign is logged and counts as absent.

    Saving the durable part raises FailedPrecondition when the disk refuses; saving the cache only logs it.
    """

    def __init__(self, open_stores: Callable[[], tuple[SealedStore, SealedStore | None]]) -> None:
        """`open_stores` gives the durable one and the cache, if there is to be one; called again after `erase`."""
        self._open = open_stores
        self._durable, self._cache = open_stores()
        self._erased = False
        self.cache_problem: BurgeeError | None = None
        """Why the cache could not be saved the last time; None when it was."""

    def load_agent(self) -> AgentSvid | None:
        opened = self._durable.load("agent")
        return None if opened is None else _decode("agent", lambda: _agent_from_json(json.loads(opened)))

    def save_agent(self, svid: AgentSvid) -> None:
        """With it ends the attestation that it came from."""
        self._durable.save("agent", json.dumps(_agent_to_json(svid)).encode(), agent=svid.id)
        self._durable.forget(ATTESTING)

    def load_attesting(self, kind: KeyType) -> bytes | None:
        """The key (PKCS#8) of an attestation whose outcome this agent did not live to see; None for other kinds."""
        opened = self._durable.load(ATTESTING)
        return None if opened is None else _decode(ATTESTING, lambda: _attesting_from_json(json.loads(opened), kind))

    def save_attesting(self, kind: KeyType, key_der: bytes) -> None:
        self._durable.save(ATTESTING, json.dumps({"kind": kind.value, "key": _to_text((key_der,))}).encode())

    def load_bundle(self) -> TrustBundle | None:
        """The own trust domain's bundle as last received from a server or from the first-trust source."""
        held = self.load_trust()
        return None if held is None else held[0]

    def load_trust(self) -> tuple[TrustBundle, tuple[Dropped, ...]] | None:
        """The same, and what was dropped from it: one blob, so that neither is ever older than the other."""
        opened = self._durable.load("bundle")
        return None if opened is None else _decode("bundle", lambda: _trust_from_bytes(opened))

    def save_bundle(self, bundle: TrustBundle, dropped: tuple[Dropped, ...] = ()) -> None:
        self._durable.save("bundle", _trust_to_bytes(bundle, dropped))

    def load_feed(self, agent: SpiffeId) -> Snapshot | None:
        """Entries, bundles, policies and resume token, if they were saved for this agent.

        Of policies there is the last set that could be used, and none before the first; empty where the server took
        them away. Where it is not what had come last, the server must be asked for everything: there is no token.
        """
        opened = self._cache.load("feed", agent=agent) if self._cache else None
        found = None if opened is None else _decode("feed", lambda: _feed_from_bytes(opened))
        if found is None or self._cache is None:
            return None
        feed, came = found
        policies = self._cache.load("policies", agent=agent)
        token = feed.token if came == digest(policies or b"") else ResumeToken()
        return replace(feed, token=token, policies=policies)

    def save_feed(self, agent: SpiffeId, feed: Snapshot, came: str = "") -> None:
        """Replaces what was saved, but for policies; `came` names the set that came last. Takes a moment for thousands
        of entries: call it in a thread."""
        self._save_cache("feed", agent, _feed_to_bytes(feed, came))

    def save_policies(self, agent: SpiffeId, policies: bytes) -> None:
        """Replaces what was saved. Before the feed: a token must not be newer. Takes a moment: call it in a thread."""
        self._save_cache("policies", agent, policies)

    def load_svids(self, agent: SpiffeId) -> tuple[StoredSvid, ...]:
        """Workload SVIDs, expired ones included: the caller knows the time."""
        opened = self._cache.load("svids", agent=agent) if self._cache else None
        if opened is None:
            return ()
        return _decode("svids", lambda: tuple(_stored_from_json(item) for item in json.loads(opened))) or ()

    def save_svids(self, agent: SpiffeId, svids: tuple[StoredSvid, ...]) -> None:
        """Replaces what was saved. Takes a moment for thousands of SVIDs: call it in a thread."""
        self._save_cache("svids", agent, json.dumps([_stored_to_json(s) for s in svids]).encode())

    def erase(self) -> None:
        """After a ban: nothing of what was remembered can be read again, and nothing is saved before `reopen`."""
        self._erased = True
        try:
            if self._cache:
                self._cache.erase()
        finally:
            self._durable.erase()

    def reopen(self) -> bool:
        """After `erase`, remember anew, under new keys. True when there was something to do.

        What was begun to be saved before must have ended. Raises FailedPrecondition.
        """
        if not self._erased:
            return False
        self._durable, self._cache = self._open()
        self._erased = False
        return True

    def _save_cache(self, name: str, agent: SpiffeId, data: bytes) -> None:
        if self._cache is None:
            return
        try:
            self._cache.save(name, data, agent=agent)
        except BurgeeError as error:
            if self.cache_problem is None:
                log.warning("cache not saved", reason=error.reason, detail=error.detail, name=name)
            self.cache_problem = error
        else:
            self.cache_problem = None


def open_store(config: AgentConfig) -> AgentStore:
    """The agent's memory where the configuration wants it. Raises FailedPrecondition when `data_dir` is unusable."""
    return AgentStore(lambda: _open_stores(config))


def _open_stores(config: AgentConfig) -> tuple[SealedStore, SealedStore | None]:
    state = config.data_dir / "state"
    try:
        durable = SealedStore(state, trust_domain=config.domain, key=durable_key(state))
        durable.sweep()
        if config.cache.persist == "none":
            return durable, None
        directory = cache_directory(config)
        fingerprint = hashlib.sha256(str(config.data_dir.absolute()).encode()).hexdigest()[:16]
        key = cache_key(directory, f"burgee:{config.trust_domain}:{fingerprint}")
    except OSError as error:
        raise FailedPrecondition(
            f"cannot use the agent's directories: {error}",
            reason="STATE_NOT_WRITABLE",
            hint="`data_dir` and `cache.directory` must belong to the agent's user, with no access for others",
        ) from error
    cache = SealedStore(directory, trust_domain=config.domain, key=key)
    cache.sweep()
    return durable, cache


def cache_directory(config: AgentConfig) -> Path:
    """`cache.directory`, else a tmpfs that is ours to write, else below `data_dir`.

    Two agents on one machine do not meet there: the last part is made from `data_dir`.
    """
    if config.cache.directory is not None:
        return config.cache.directory
    name = hashlib.sha256(str(config.data_dir.absolute()).encode()).hexdigest()[:16]
    for root in (Path("/run"), Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")):
        if os.access(root, os.W_OK) and is_tmpfs(root):
            return root / "burgee" / "cache" / name
    return config.data_dir / "cache"


def is_tmpfs(path: Path) -> bool:
    """Whether this directory lives in memory, by the mount table (proc(5), mountinfo)."""
    try:
        device = path.stat().st_dev
        table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0] in ("tmpfs", "ramfs")
    return False


T = TypeVar("T")


def _decode(name: str, read: Callable[[], T]) -> T | None:
    """What opened is authentic; a shape that this version does not know counts as absent."""
    try:
        return read()
    except (ValueError, KeyError, TypeError, AttributeError, DecodeError, BurgeeError) as error:
        log.warning("sealed state ignored", reason="SEALED_STATE_IGNORED", name=name, detail=f"unknown shape: {error}")
        return None


def _attesting_from_json(data: dict[str, Any], kind: KeyType) -> bytes | None:
    return _from_text(data["key"])[0] if data["kind"] == kind.value else None


def _agent_to_json(svid: AgentSvid) -> dict[str, Any]:
    return {
        "id": str(svid.id),
        "chain": _to_text(svid.chain),
        "key": _to_text((svid.key_der,))[0],
        "issued_at": svid.issued_at.timestamp(),
        "not_after": svid.not_after.timestamp(),
        "reattestable": svid.reattestable,
    }


def _agent_from_json(data: dict[str, Any]) -> AgentSvid:
    svid = AgentSvid(
        id=SpiffeId.parse(data["id"]),
        chain=_from_text(data["chain"]),
        key_der=base64.b64decode(data["key"]),
        issued_at=datetime.fromtimestamp(data["issued_at"], UTC),
        not_after=datetime.fromtimestamp(data["not_after"], UTC),
        reattestable=bool(data["reattestable"]),
    )
    svid.private_key()
    return svid


def _stored_to_json(svid: StoredSvid) -> dict[str, Any]:
    return {
        "entry_id": svid.entry_id,
        "entry_revision": svid.entry_revision,
        "chain": _to_text(svid.chain),
        "key": _to_text((svid.key_der,))[0],
        "issued_at": svid.issued_at.timestamp(),
        "not_after": svid.not_after.timestamp(),
    }


def _stored_from_json(data: dict[str, Any]) -> StoredSvid:
    return StoredSvid(
        entry_id=str(data["entry_id"]),
        entry_revision=int(data["entry_revision"]),
        chain=_from_text(data["chain"]),
        key_der=base64.b64decode(data["key"]),
        issued_at=datetime.fromtimestamp(data["issued_at"], UTC),
        not_after=datetime.fromtimestamp(data["not_after"], UTC),
    )


def _feed_to_bytes(feed: Snapshot, came: str) -> bytes:
    """In the shape in which a server sends a snapshot, with the name of the policies beside them."""
    message = node_pb2.SyncResponse(store_epoch=feed.token.epoch, revision=feed.token.revision, snapshot=True)
    for entry in feed.entries:
        message.resources.add(kind=ENTRY, name=entry.id, payload=entry_to_wire(entry).SerializeToString())
    for bundle in feed.bundles:
        name = bundle.trust_domain.name
        message.resources.add(kind=BUNDLE, name=name, payload=bundle_to_wire(bundle).SerializeToString())
    if came:
        message.resources.add(kind=CAME, name=came)
    return message.SerializeToString()


def _feed_from_bytes(data: bytes) -> tuple[Snapshot, str]:
    message = node_pb2.SyncResponse.FromString(data)
    change, _ = read_resources(message)
    came = next((resource.name for resource in message.resources if resource.kind == CAME), "")
    return Snapshot(token=change.token, entries=change.entries, bundles=change.bundles), came


def _trust_to_bytes(bundle: TrustBundle, dropped: tuple[Dropped, ...]) -> bytes:
    sealed = {
        "bundle": _to_text((bundle_to_wire(bundle).SerializeToString(),))[0],
        "dropped": {item.fingerprint.hex(): item.not_after.timestamp() for item in dropped},
    }
    return json.dumps(sealed).encode()


def _trust_from_bytes(data: bytes) -> tuple[TrustBundle, tuple[Dropped, ...]]:
    """Earlier versions sealed the bundle's message alone, which never begins with a brace."""
    if not data.startswith(b"{"):
        return _bundle_from_bytes(data), ()
    sealed = json.loads(data)
    dropped = tuple(
        Dropped(fingerprint=bytes.fromhex(name), not_after=datetime.fromtimestamp(end, UTC))
        for name, end in sealed["dropped"].items()
    )
    return _bundle_from_bytes(base64.b64decode(sealed["bundle"])), dropped


def _bundle_from_bytes(data: bytes) -> TrustBundle:
    return bundle_from_wire(types_pb2.Bundle.FromString(data))


def _to_text(values: tuple[bytes, ...]) -> list[str]:
    return [base64.b64encode(value).decode() for value in values]


def _from_text(values: list[str]) -> tuple[bytes, ...]:
    return tuple(base64.b64decode(value) for value in values)
