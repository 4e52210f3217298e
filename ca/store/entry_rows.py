"""A registration entry as rows of the three tables that hold it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sqlalchemy import Row

from ca.identity.entry import RegistrationEntry
from ca.store.rows import (
    check_storable,
    from_micros,
    selector_digest,
    selectors_from_json,
    selectors_to_json,
    shared_spiffe_id,
    similarity,
    spiffe_id,
    to_json,
    to_micros,
    trust_domain,
)


def normal(entry: RegistrationEntry, **changes: Any) -> RegistrationEntry:
    """The entry, changed, as it will be read back: `federates_with` is a set; the order of DNS names is kept, since the
    first one becomes the common name."""
    return replace(entry, federates_with=tuple(sorted(set(entry.federates_with))), **changes)


def entry_row(entry: RegistrationEntry) -> dict[str, Any]:
    """All columns of `entries` but `position`. Raises InvalidArgument for text that cannot be stored."""
    selectors = selectors_to_json(entry.selectors)
    check_storable((entry.id, entry.hint, *entry.dns_names, *(s.type + s.value for s in entry.selectors)))
    assert entry.created_at is not None
    parent, own = str(entry.parent_id), str(entry.spiffe_id)
    return {
        "id": entry.id,
        "spiffe_id": own,
        "parent_id": parent,
        "similarity": similarity(own, parent, selectors),
        "selectors": selectors,
        "selector_count": len(entry.selectors),
        "federates_with": to_json([td.name for td in entry.federates_with]),
        "federates_with_count": len(entry.federates_with),
        "dns_names": to_json(entry.dns_names),
        "x509_svid_ttl_seconds": entry.x509_svid_ttl_seconds,
        "jwt_svid_ttl_seconds": entry.jwt_svid_ttl_seconds,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": None if entry.expires_at is None else to_micros(entry.expires_at),
        "revision_number": entry.revision_number,
        "store_svid": entry.store_svid,
        "hint": entry.hint,
        "created_at": to_micros(entry.created_at),
        "disable_x509_svid_prefetch": entry.disable_x509_svid_prefetch,
        "jwt_svid_include_jti": entry.jwt_svid_include_jti,
    }


def selector_rows(entry: RegistrationEntry, position: int) -> list[dict[str, Any]]:
    return [{"position": position, "digest": selector_digest(s)} for s in entry.selectors]


def federation_rows(entry: RegistrationEntry, position: int) -> list[dict[str, Any]]:
    return [{"position": position, "trust_domain": td.name} for td in entry.federates_with]


def entry_of(row: Row[Any]) -> RegistrationEntry:
    """The entry in a row of `entries`."""
    return RegistrationEntry(
        id=row.id,
        spiffe_id=spiffe_id(row.spiffe_id),
        parent_id=shared_spiffe_id(row.parent_id),
        selectors=selectors_from_json(row.selectors),
        x509_svid_ttl_seconds=row.x509_svid_ttl_seconds,
        jwt_svid_ttl_seconds=row.jwt_svid_ttl_seconds,
        federates_with=_trust_domains(row.federates_with),
        admin=row.admin,
        downstream=row.downstream,
        expires_at=None if row.expires_at is None else from_micros(row.expires_at),
        dns_names=_texts(row.dns_names),
        revision_number=row.revision_number,
        store_svid=row.store_svid,
        hint=row.hint,
        created_at=from_micros(row.created_at),
        disable_x509_svid_prefetch=row.disable_x509_svid_prefetch,
        jwt_svid_include_jti=row.jwt_svid_include_jti,
    )


def _texts(column: str) -> tuple[str, ...]:
    return () if column == "[]" else tuple(json.loads(column))


def _trust_domains(column: str) -> tuple[Any, ...]:
    return tuple(trust_domain(name) for name in _texts(column))
