"""Registration entries: which selectors under which parent earn which SPIFFE ID."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationEntry:
    """Wire shape: spire.api.types.Entry. TTLs of 0 mean the server's default."""

    id: str
    spiffe_id: SpiffeId
    parent_id: SpiffeId
    selectors: frozenset[Selector]
    x509_svid_ttl_seconds: int = 0
    jwt_svid_ttl_seconds: int = 0
    federates_with: tuple[TrustDomain, ...] = ()
    admin: bool = False
    downstream: bool = False
    expires_at: datetime | None = None
    dns_names: tuple[str, ...] = ()
    revision_number: int = 0
    store_svid: bool = False
    hint: str = ""
    created_at: datetime | None = None
    disable_x509_svid_prefetch: bool = False
    jwt_svid_include_jti: bool = False
