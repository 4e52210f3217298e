"""Rows of the authorities' journal, to their values and back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from ca.ports import KeyType
from ca.store.rows import from_micros, to_json, to_micros
from ca.store.values import AuthorityKeyRecord, AuthorityRecord, UpstreamRecord

AUTHORITY_KEY = ("server", "authority_id")
KEY_KEY = ("server", "key_id")
UPSTREAM_KEY = ("server", "kind", "authority_id", "material_sha256")
"""The columns that name a row."""


def authority_columns(authority: AuthorityRecord) -> dict[str, Any]:
    return {
        "server": authority.server,
        "authority_id": authority.authority_id,
        "kind": authority.kind,
        "key_id": authority.key_id,
        "key_type": authority.key_type.value,
        "status": authority.status,
        "not_before": to_micros(authority.not_before),
        "not_after": to_micros(authority.not_after),
        "tainted": authority.tainted,
        "material": authority.material,
        "chain": to_json([base64.b64encode(certificate).decode() for certificate in authority.chain]),
        "upstream_authority_id": authority.upstream_authority_id,
        "prepared_at": _micros(authority.prepared_at),
        "activated_at": _micros(authority.activated_at),
        "tainted_at": _micros(authority.tainted_at),
        "revoked_at": _micros(authority.revoked_at),
    }


def authority_record(row: Row[Any]) -> AuthorityRecord:
    return AuthorityRecord(
        server=row.server,
        kind=row.kind,
        authority_id=row.authority_id,
        key_id=row.key_id,
        key_type=KeyType(row.key_type),
        status=row.status,
        not_before=from_micros(row.not_before),
        not_after=from_micros(row.not_after),
        material=bytes(row.material),
        tainted=row.tainted,
        chain=tuple(base64.b64decode(certificate) for certificate in json.loads(row.chain)),
        upstream_authority_id=row.upstream_authority_id,
        prepared_at=_moment(row.prepared_at),
        activated_at=_moment(row.activated_at),
        tainted_at=_moment(row.tainted_at),
        revoked_at=_moment(row.revoked_at),
    )


def key_columns(key: AuthorityKeyRecord) -> dict[str, Any]:
    return {"server": key.server, "key_id": key.key_id, "kind": key.kind, "since": to_micros(key.since)}


def key_record(row: Row[Any]) -> AuthorityKeyRecord:
    return AuthorityKeyRecord(server=row.server, key_id=row.key_id, kind=row.kind, since=from_micros(row.since))


def upstream_columns(members: Sequence[UpstreamRecord]) -> list[dict[str, Any]]:
    """With the place of each among its server's."""
    places: dict[str, int] = {}
    made = []
    for member in members:
        places[member.server] = places.get(member.server, -1) + 1
        made.append(_upstream_columns(member, places[member.server]))
    return made


def _upstream_columns(member: UpstreamRecord, position: int) -> dict[str, Any]:
    return {
        "server": member.server,
        "kind": member.kind,
        "authority_id": member.authority_id,
        "material_sha256": hashlib.sha256(member.material).digest(),
        "position": position,
        "material": member.material,
        "expires_at": _micros(member.expires_at),
        "tainted": member.tainted,
        "gone_at": _micros(member.gone_at),
        "revoked_at": _micros(member.revoked_at),
    }


def upstream_record(row: Row[Any]) -> UpstreamRecord:
    return UpstreamRecord(
        server=row.server,
        kind=row.kind,
        authority_id=row.authority_id,
        material=bytes(row.material),
        expires_at=_moment(row.expires_at),
        tainted=row.tainted,
        gone_at=_moment(row.gone_at),
        revoked_at=_moment(row.revoked_at),
    )


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)
