"""What goes into the store and comes out of it, beside the values of `ca.identity`; all frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, Literal, NamedTuple, TypeVar

from ca.errors import BurgeeError, FailedPrecondition
from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import KeyType

T = TypeVar("T")

ChangeKind = Literal["entry", "agent", "bundle", "policy", "reset"]


class Match(StrEnum):
    """How a set in a filter relates to the set of an item (wire: MATCH_EXACT 0, SUBSET 1, SUPERSET 2, ANY 3)."""

    EXACT = "exact"
    SUBSET = "subset"
    """The item has some of the filter's members and no others."""
    SUPERSET = "superset"
    """The item has at least all of the filter's members."""
    ANY = "any"
    """The item has at least one of the filter's members."""


class DeleteMode(StrEnum):
    """What becomes of entries that federate with a trust domain whose bundle is deleted (wire: RESTRICT 0, DELETE 1,
    DISSOCIATE 2)."""

    RESTRICT = "restrict"
    """The bundle stays while there are any."""
    DELETE = "delete"
    """They are deleted too."""
    DISSOCIATE = "dissociate"
    """They stay, and federate with it no more."""


@dataclass(frozen=True, slots=True)
class SelectorMatch:
    """A filter on selectors; an empty set is refused with InvalidArgument when it is used."""

    selectors: frozenset[Selector]
    match: Match = Match.EXACT


@dataclass(frozen=True, slots=True)
class TrustDomainMatch:
    """A filter on `federates_with`; an empty set is refused with InvalidArgument when it is used."""

    trust_domains: frozenset[TrustDomain]
    match: Match = Match.EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFilter:
    """All given conditions must hold. An empty hint and `by_downstream=False` filter nothing, as on SPIRE's wire."""

    by_spiffe_id: SpiffeId | None = None
    by_parent_id: SpiffeId | None = None
    by_selectors: SelectorMatch | None = None
    by_federates_with: TrustDomainMatch | None = None
    by_hint: str = ""
    by_downstream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFilter:
    """All given conditions must hold; None (or an empty type) filters nothing. Expires before: strictly."""

    by_attestation_type: str = ""
    by_selector_match: SelectorMatch | None = None
    by_banned: bool | None = None
    by_can_reattest: bool | None = None
    by_expires_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items in order of creation; `next_token` is empty when nothing followed at the time of reading."""

    items: Sequence[T]
    next_token: str = ""


@dataclass(frozen=True, slots=True)
class EntryResult:
    """The outcome for one entry of a batch: `status` None means created; else why not, and the similar entry if any."""

    status: BurgeeError | None
    entry: RegistrationEntry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedAgent:
    """An agent. Serials are decimal; `serial` is empty for a banned agent.

    `pending_serial` names a renewed certificate that was handed out and not yet used.
    """

    id: SpiffeId
    attestation_type: str
    serial: str
    not_after: datetime
    pending_serial: str = ""
    pending_not_after: datetime | None = None
    selectors: frozenset[Selector] = frozenset()
    reattestable: bool = False
    banned: bool = False
    agent_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """What is known of a join token: never itself while it serves. `agent_id` is the alias that its agents get.

    `used_at` and `used_by`, the agent's path, are of the last use, the latter empty where nobody wrote it down.
    """

    id: str
    expires_at: datetime
    name: str = ""
    agent_id: SpiffeId | None = None
    uses: int = 1
    used: int = 0
    used_at: datetime | None = None
    used_by: str = ""
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One change that agents or replicas watch. `name` is an entry id, an agent's SPIFFE ID, a trust domain name, or of
    policies the number of a revision, `grants` or `invariants`.

    Kind `reset` (only ever given to subscribers) says that changes were lost to compaction: read everything anew.
    `mark` is random: a store that was restored from a backup reaches the same revision with another one.
    """

    revision: int
    kind: ChangeKind
    name: str
    deleted: bool = False
    mark: str = field(default="", compare=False)


class Compacted(FailedPrecondition):
    """The reader's place in the change log is gone, or was never in this log: read a snapshot."""

    reason = "CHANGES_COMPACTED"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that agents and replicas watch, read in one transaction, as of `revision`."""

    revision: int
    entries: tuple[RegistrationEntry, ...]
    agents: tuple[AttestedAgent, ...]
    bundles: tuple[TrustBundle, ...]
    mark: str = ""
    """Of the change with that revision."""


AuthorityKindName = Literal["x509", "jwt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityRecord:
    """A signing authority's row. `status` is the state machine's word; `material` is DER: the certificate of an x509
    authority, the SubjectPublicKeyInfo of a jwt one; `chain` leads from that certificate towards the root."""

    server: str
    kind: AuthorityKindName
    authority_id: str
    key_id: str
    key_type: KeyType
    status: str
    not_before: datetime
    not_after: datetime
    material: bytes
    tainted: bool = False
    chain: tuple[bytes, ...] = ()
    upstream_authority_id: str = ""
    prepared_at: datetime | None = None
    activated_at: datetime | None = None
    tainted_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityKeyRecord:
    """A private key that is being made, or is to be deleted."""

    server: str
    key_id: str
    kind: AuthorityKindName
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRecord:
    """A root or a JWT authority that the upstream of a server publishes; `material` is DER, as of an authority."""

    server: str
    kind: AuthorityKindName
    authority_id: str
    material: bytes
    expires_at: datetime | None = None
    tainted: bool = False
    gone_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecords:
    """All rows about authorities, of all servers; the order of `upstream` is kept for each server."""

    authorities: tuple[AuthorityRecord, ...] = ()
    upstream: tuple[UpstreamRecord, ...] = ()
    keys: tuple[AuthorityKeyRecord, ...] = ()


IssuedKind = Literal["x509", "jwt", "wit", "ca"]


class IssuanceRecord(NamedTuple):
    """One signature, written before it is made. A tuple, because thousands are made a second.

    `serial_or_kid`: decimal serial number of a certificate, key id of a token. `tbs_sha256` and `key_sha256` (of the
    SubjectPublicKeyInfo; empty for tokens) are raw digests. `entry_id` and `agent` are empty where none took part.
    For whoever exchanged a token without an agent, `agent` is `ca.identity.exchange.requester`.
    """

    kind: IssuedKind
    serial_or_kid: str
    tbs_sha256: bytes
    authority_id: str
    server: str
    spiffe_id: str
    not_before: datetime
    not_after: datetime
    entry_id: str = ""
    entry_revision: int = 0
    agent: str = ""
    key_sha256: bytes = b""
