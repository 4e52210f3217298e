"""Trust bundles: the authorities of a trust domain, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ca.identity.certificate import authority_id
from ca.identity.spiffe_id import TrustDomain

__all__ = ["JwtAuthority", "TrustBundle", "X509Authority", "authority_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Authority:
    """One root certificate, DER."""

    certificate: bytes
    tainted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtAuthority:
    """One JWT signing key: SubjectPublicKeyInfo DER and its key id."""

    key_id: str
    public_key: bytes
    expires_at: datetime | None = None
    tainted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The authorities of one trust domain. `sequence_number` grows with each change of contents.

    Without authorities it vouches for nothing: every SVID of the domain is then untrusted.
    """

    trust_domain: TrustDomain
    x509_authorities: tuple[X509Authority, ...] = ()
    jwt_authorities: tuple[JwtAuthority, ...] = ()
    refresh_hint_seconds: int = 0
    sequence_number: int = 0
