"""What one kind of caller may have, as bytes ready to send: built once, shared by all its streams."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from ca.identity.bundle import TrustBundle
from ca.identity.bundle_format import format_jwks
from ca.identity.bundle_pem import format_pem
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId
from ca.proto.burgee import workload_pb2 as wl
from sds.entries import is_partial, unique_hints
from sds.memory import Room

MADE_AT_MOST = 4096
MADE_BYTES_AT_MOST = 2 << 20
CHOSEN_BYTES = 512
"""What keeping an answer takes beside its bytes and the names in its key."""

FAR = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSvid:
    """A workload's X.509-SVID. `chain` is DER, leaf first; `key` PKCS#8 DER; `asked` what it was issued for.

    `rotate_at` is by the wall clock; `rotate_by` the same by the monotonic one, which nobody can set back.
    `issuer_ids` name the authorities that it hangs on, nearest first.
    """

    entry_id: str
    spiffe_id: SpiffeId
    chain: tuple[bytes, ...]
    key: bytes
    issued_at: datetime
    not_after: datetime
    rotate_at: datetime
    issuer_ids: tuple[str, ...]
    asked: tuple[str, ...]
    rotate_by: float = math.inf


def asked_for(entry: RegistrationEntry) -> tuple[str, ...]:
    """What of an entry goes into its certificate: when this changes, the SVID is issued anew; else only resent.

    Of a partial entry only the server knows that: any new revision has its SVID issued anew.
    """
    if is_partial(entry):
        created = entry.created_at.isoformat() if entry.created_at else ""
        return (str(entry.spiffe_id), f"revision {entry.revision_number}", created)
    return (str(entry.spiffe_id), str(entry.x509_svid_ttl_seconds), *entry.dns_names)


class BundleForms:
    """A trust bundle and its encodings, each made when first needed."""

    def __init__(self, bundle: TrustBundle) -> None:
        self.bundle = bundle
        self.trust_domain = bundle.trust_domain
        # Workload API §5.2.2 (F24): the key of a bundle map is the trust domain's SPIFFE ID.
        self.id = f"spiffe://{bundle.trust_domain.name}"

    @cached_property
    def der(self) -> bytes:
        """Concatenated certificates; also those of tainted authorities, which verify until they are revoked."""
        return b"".join(authority.certificate for authority in self.bundle.x509_authorities)

    @cached_property
    def pem(self) -> bytes:
        return format_pem(self.bundle).encode("ascii")

    @cached_property
    def jwks(self) -> bytes:
        """Workload API §6.2.2 (F35): JWT-SVID keys alone."""
        return format_jwks(self.bundle).encode("utf-8")


class Content:
    """Everything that callers with one set of selectors get. Immutable; its encodings are made when first needed.

    `entries` are all that match, `svids` the pairs whose SVID is here and unexpired, in the order of entry ids.
    `bundles` begins with the own trust domain, then those that the entries federate with, by name.
    """

    def __init__(
        self,
        entries: tuple[RegistrationEntry, ...],
        svids: tuple[tuple[RegistrationEntry, WorkloadSvid], ...],
        bundles: tuple[BundleForms, ...],
    ) -> None:
        self.entries = entries
        self.svids = svids
        self.bundles = bundles
        self.hints = unique_hints(entries)
        self._made: dict[object, bytes] = {}
        self._made_bytes = 0
        self._chosen: dict[tuple[object, ...], bytes] = {}
        self._taken: Counter[str] = Counter()
        expiries = [entry.expires_at for entry in entries if entry.expires_at is not None]
        self.valid_until = min([svid.not_after for _, svid in svids] + expiries, default=FAR)

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """What it is made of, as long as it lives: contents with one key are the same."""
        parts = (self.entries, [svid for _, svid in self.svids], self.bundles)
        return tuple(tuple(map(id, part)) for part in parts)

    @property
    def complete(self) -> bool:
        """Whether every entry has its SVID."""
        return len(self.svids) == len(self.entries)

    def same_as(self, other: Content | None) -> bool:
        """Whether a caller could tell them apart: only then is anything sent (F6)."""
        return (
            other is not None
            and self.entries == other.entries
            and len(self.svids) == len(other.svids)
            and all(a is b for (_, a), (_, b) in zip(self.svids, other.svids, strict=True))
            and len(self.bundles) == len(other.bundles)
            and all(a is b for a, b in zip(self.bundles, other.bundles, strict=True))
        )

    @cached_property
    def x509_svids(self) -> bytes:
        """A serialized X509SVIDResponse, complete and not a delta (Workload API §4.4, F5)."""
        own = self.bundles[0].der
        response = wl.X509SVIDResponse(
            svids=[
                wl.X509SVID(
                    spiffe_id=str(svid.spiffe_id),
                    x509_svid=b"".join(svid.chain),  # leaf first (F14)
                    x509_svid_key=svid.key,
                    bundle=own,
                    hint=self.hints.get(entry.id, ""),
                )
                for entry, svid in self.svids
            ],
            federated_bundles={forms.id: forms.der for forms in self.bundles[1:]},
        )
        return response.SerializeToString(deterministic=True)

    @cached_property
    def x509_bundles(self) -> bytes:
        """A serialized X509BundlesResponse with the own trust domain in it (F24)."""
        response = wl.X509BundlesResponse(bundles={forms.id: forms.der for forms in self.bundles})
        return response.SerializeToString(deterministic=True)

    @cached_property
    def jwt_bundles(self) -> bytes:
        """A serialized JWTBundlesResponse with the own trust domain in it (F34)."""
        response = wl.JWTBundlesResponse(bundles={forms.id: forms.jwks for forms in self.bundles})
        return response.SerializeToString(deterministic=True)

    @cached_property
    def version(self) -> str:
        """A name for this content that is the same on every stream and after a restart: SDS's version_info."""
        digest = hashlib.sha256()
        for part in (self.x509_svids, self.x509_bundles):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()[:16]

    def once(self, key: object, make: Callable[[], bytes]) -> bytes:
        """What `make` gives, made once for each `key`: serialized secrets and their versions.

        The keys are for this content to bound, not for callers to choose. Of large contents not everything is kept:
        beyond `MADE_AT_MOST` keys, or `MADE_BYTES_AT_MOST`, it is made each time.
        """
        found = self._made.get(key)
        if found is None:
            found = make()
            room = len(found) + _key_bytes(key)
            if len(self._made) < MADE_AT_MOST and self._made_bytes + room <= MADE_BYTES_AT_MOST:
                self._made[key] = found
                self._made_bytes += room
        return found

    def once_for(self, room: Room | None, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """As `once` for a key that callers choose, such as which names in which order: kept in the room of whoever has
        it made, as long as there is any, and shared with all who choose the same."""
        if room is None:
            return self.once(key, make)
        found = self._chosen.get(key)
        if found is None:
            found = make()
            size = 2 * len(found) + CHOSEN_BYTES  # all names of the key are in the bytes as well
            if room.memory.offer(room.share, size):
                if not self._taken:
                    weakref.finalize(self, room.memory.give_back, self._taken).atexit = False
                self._chosen[key] = found
                self._taken[room.share] += size
        return found


def _key_bytes(key: object) -> int:
    return sum(len(part) for part in key if isinstance(part, bytes)) if isinstance(key, tuple) else 0


def build(
    entries: tuple[RegistrationEntry, ...],
    svids: Mapping[str, WorkloadSvid],
    own: BundleForms,
    foreign: Mapping[str, BundleForms],
    now: datetime,
) -> Content:
    """Content for matching entries. An SVID that has expired, or was issued for what the entry no longer says its
    SPIFFE ID is, is left out; so is a federated bundle that has not arrived."""
    pairs = []
    for entry in entries:
        svid = svids.get(entry.id)
        if svid is not None and svid.not_after > now and svid.spiffe_id == entry.spiffe_id:
            pairs.append((entry, svid))
    return Content(entries, tuple(pairs), (own, *_federated(entries, own, foreign)))


def _federated(
    entries: Sequence[RegistrationEntry], own: BundleForms, foreign: Mapping[str, BundleForms]
) -> list[BundleForms]:
    names = {domain.name for entry in entries for domain in entry.federates_with}
    names.discard(own.trust_domain.name)
    return [foreign[name] for name in sorted(names) if name in foreign]
