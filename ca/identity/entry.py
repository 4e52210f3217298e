"""Registration entries: which selectors under which parent earn which SPIFFE ID."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from ca.errors import AlreadyExists, InvalidArgument
from ca.identity.dns_name import check_dns_name
from ca.identity.exchange import is_parent_path
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain, is_reserved
from ca.identity.text import quote

MAX_ENTRY_ID_CHARACTERS = 255
MAX_HINT_BYTES = 1024
MAX_TTL_SECONDS = 2**31 - 1
"""The wire carries TTLs as int32."""

_ENTRY_ID = re.compile(r"[a-zA-Z0-9._-]*")


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


def validate_entry(entry: RegistrationEntry, *, trust_domain: TrustDomain) -> None:
    """Checks an entry of this trust domain as SPIRE's server does on create and update.

    An empty `id` passes: the store then makes one. Raises InvalidArgument, or AlreadyExists for a DNS name given
    twice (SPIRE's answer). Length and characters of IDs and selectors are checked by their own types.
    """
    _check_entry_id(entry.id)
    _check_spiffe_id(entry.spiffe_id, trust_domain)
    _check_parent_id(entry.parent_id, trust_domain)
    _check_selectors(entry)
    _check_ttl("x509_svid_ttl", entry.x509_svid_ttl_seconds)
    _check_ttl("jwt_svid_ttl", entry.jwt_svid_ttl_seconds)
    _check_dns_names(entry.dns_names)
    if len(entry.hint.encode("utf-8", "surrogatepass")) > MAX_HINT_BYTES:  # SPIFFE Workload API §8 (F58)
        raise InvalidArgument(f"hint is too long, max length is {MAX_HINT_BYTES} bytes", reason="HINT_TOO_LONG")


def _check_entry_id(entry_id: str) -> None:
    if _ENTRY_ID.fullmatch(entry_id) is None:
        raise InvalidArgument(
            f"entry ID contains invalid characters: {quote(entry_id)}",
            reason="ENTRY_ID_CHARACTERS",
            hint="use letters, numbers, dots, dashes and underscores",
        )
    if len(entry_id) > MAX_ENTRY_ID_CHARACTERS:
        raise InvalidArgument(
            f"entry ID too long, max length is {MAX_ENTRY_ID_CHARACTERS} characters", reason="ENTRY_ID_TOO_LONG"
        )


def _check_spiffe_id(spiffe_id: SpiffeId, trust_domain: TrustDomain) -> None:
    if spiffe_id.trust_domain != trust_domain:
        raise InvalidArgument(
            f"invalid spiffe ID: {quote(str(spiffe_id))} is not a member of trust domain `{trust_domain}`",
            reason="SPIFFE_ID_FOREIGN",
        )
    if not spiffe_id.path:  # X509-SVID §3.1 (B3)
        raise InvalidArgument(
            f"invalid spiffe ID: `{spiffe_id}` is not a workload in trust domain `{trust_domain}`; path is empty",
            reason="SPIFFE_ID_NO_PATH",
        )
    if is_parent_path(spiffe_id.path):
        raise InvalidArgument(
            f"invalid spiffe ID: {quote(str(spiffe_id))} is for parents of what is exchanged without an agent",
            reason="SPIFFE_ID_RESERVED",
            hint="an entry for tokens of an issuer names it as its parent",
        )
    if is_reserved(spiffe_id.path):
        raise InvalidArgument(
            f"invalid spiffe ID: {quote(str(spiffe_id))} is not a workload in trust domain `{trust_domain}`; "
            "path is in the reserved namespace",
            reason="SPIFFE_ID_RESERVED",
            hint="`/spire` and all below it belong to servers and agents",
        )


def _check_parent_id(parent_id: SpiffeId, trust_domain: TrustDomain) -> None:
    """Any ID with a path in this trust domain: an agent's, another entry's, or the server's (a node alias)."""
    if parent_id.trust_domain != trust_domain:
        raise InvalidArgument(
            f"invalid parent ID: {quote(str(parent_id))} is not a member of trust domain `{trust_domain}`",
            reason="PARENT_ID_FOREIGN",
        )
    if not parent_id.path:
        raise InvalidArgument(
            f"invalid parent ID: `{parent_id}` is not a member of trust domain `{trust_domain}`; path is empty",
            reason="PARENT_ID_NO_PATH",
        )


def _check_selectors(entry: RegistrationEntry) -> None:
    if not entry.selectors:
        raise InvalidArgument("selector list is empty", reason="SELECTORS_EMPTY")
    if entry.store_svid and len({selector.type for selector in entry.selectors}) > 1:
        raise InvalidArgument(
            "selector types must be the same when store SVID is enabled", reason="SELECTORS_MIXED_FOR_STORE"
        )


def _check_ttl(name: str, seconds: int) -> None:
    if not 0 <= seconds <= MAX_TTL_SECONDS:
        raise InvalidArgument(
            f"{name} of {seconds} seconds is not between 0 and {MAX_TTL_SECONDS}",
            reason="TTL_OUT_OF_RANGE",
            hint="0 means the server's default",
        )


def _check_dns_names(names: tuple[str, ...]) -> None:
    for name in names:
        check_dns_name(name)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise AlreadyExists(f"DNS name {quote(twice)} is given twice", reason="DNS_NAME_DUPLICATE")
