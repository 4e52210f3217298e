"""A server's signing authorities as values: which is published, which signs, which is only still believed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ca.errors import FailedPrecondition
from ca.ports import KeyType


class AuthorityKind(StrEnum):
    """What an authority signs."""

    X509 = "x509"
    JWT = "jwt"


class AuthorityState(StrEnum):
    """PREPARED: in the bundle, not signing yet. ACTIVE: signs. OLD: signs no more, stays in the bundle to its end.

    REVOKED: left the bundle before its end; remembered until then, so that nothing brings it back.
    """

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """One authority of one server. An Authority exists only once what vouches for it is in the bundle.

    `authority_id` is the hex subject key identifier (x509) or the kid (jwt); `key_id` names the private key in the
    key manager. `not_before` is the moment of issue, not the certificate's backdated notBefore: thresholds count from
    it. `certificate` (x509, DER) or `public_key` (jwt, SubjectPublicKeyInfo DER) is what is certified. `server` names
    the server that holds the key.

    Below an upstream authority `chain` (DER) leads from the certificate towards the root, nearest first and without
    it, `upstream_authority_id` names that root, which alone is in the bundle, and `not_after` is the first end of all
    of them. The other times say when a step was taken; None where it was not, or before such times were kept.
    """

    kind: AuthorityKind
    authority_id: str
    key_id: str
    key_type: KeyType
    status: AuthorityState
    not_before: datetime
    not_after: datetime
    server: str
    tainted: bool = False
    certificate: bytes = b""
    public_key: bytes = b""
    chain: tuple[bytes, ...] = ()
    upstream_authority_id: str = ""
    prepared_at: datetime | None = None
    activated_at: datetime | None = None
    tainted_at: datetime | None = None
    revoked_at: datetime | None = None

    @property
    def published_at(self) -> datetime:
        """Since when it is in the bundle, as far as is known."""
        return self.prepared_at or self.not_before


def of_kind(authorities: Iterable[Authority], kind: AuthorityKind) -> tuple[Authority, ...]:
    """Those of one kind, in order."""
    return tuple(authority for authority in authorities if authority.kind == kind)


def of_server(authorities: Iterable[Authority], server: str) -> tuple[Authority, ...]:
    """Those of one server, in order."""
    return tuple(authority for authority in authorities if authority.server == server)


def find(authorities: Iterable[Authority], status: AuthorityState, kind: AuthorityKind) -> Authority | None:
    """The authority in this slot. There is never more than one PREPARED or ACTIVE of a kind and a server."""
    for authority in authorities:
        if authority.status == status and authority.kind == kind:
            return authority
    return None


def signing_authority(authorities: Iterable[Authority], kind: AuthorityKind, *, now: datetime) -> Authority:
    """The one that signs now: published before it was active, SPIFFE Federation §4.1 (H2), and not at its end.

    Raises FailedPrecondition with reason NO_AUTHORITY, AUTHORITY_EXPIRED or AUTHORITY_TAINTED.
    """
    active = find(authorities, AuthorityState.ACTIVE, kind)
    if active is None:
        raise FailedPrecondition(f"there is no active {kind} authority", reason="NO_AUTHORITY")
    if active.not_after <= now:
        raise FailedPrecondition(f"the active {kind} authority has expired", reason="AUTHORITY_EXPIRED")
    if active.tainted:
        raise FailedPrecondition(
            f"the active {kind} authority is tainted",
            reason="AUTHORITY_TAINTED",
            hint="a new one is being made; the log says what keeps it",
        )
    return active
