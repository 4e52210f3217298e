"""Between policies' values and rows."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import Row

from ca.store.rows import from_micros, to_json
from policy.book_values import Body, Changed, Grant, Key, Revision, Role, Stored, canonical, etag_of


def key_of(row: Row[Any]) -> Key:
    return Key(kind=row.kind, namespace=row.namespace, name=row.name)


def key_columns(key: Key) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "name": key.name}


def stored_of(row: Row[Any]) -> Stored:
    """Bodies are kept as canonical JSON, so that their digest is that of the text."""
    return Stored(
        key=key_of(row),
        body=json.loads(row.body),
        etag=hashlib.sha256(row.body.encode()).hexdigest()[:32],
        revision=row.revision,
        owner=row.owner,
    )


def object_row(stored: Stored) -> dict[str, Any]:
    body = canonical(stored.body).decode()
    return {**key_columns(stored.key), "body": body, "revision": stored.revision, "owner": stored.owner}


def history_row(number: int, before: Stored | None, after: Stored | None) -> dict[str, Any]:
    one = after or before
    assert one is not None
    return {
        "number": number,
        **key_columns(one.key),
        "before": None if before is None else canonical(before.body).decode(),
        "before_revision": None if before is None else before.revision,
        "before_owner": None if before is None else before.owner,
        "after": None if after is None else canonical(after.body).decode(),
        "after_owner": None if after is None else after.owner,
    }


def changed_of(row: Row[Any]) -> Changed:
    return Changed(key=key_of(row), before=_body(row.before), after=_body(row.after))


def before_of(row: Row[Any]) -> Stored | None:
    """What there was before a row of the history."""
    return None if row.before is None else _stored(row, row.before, row.before_revision, row.before_owner)


def after_of(row: Row[Any]) -> Stored | None:
    """What came of it."""
    return None if row.after is None else _stored(row, row.after, row.number, row.after_owner)


def revision_of(row: Row[Any], changes: tuple[Changed, ...] = ()) -> Revision:
    return Revision(
        number=row.number,
        at=from_micros(row.at),
        actor=row.actor,
        note=row.note,
        changes=changes,
        count=row._mapping["count"],
    )


def grant_of(row: Row[Any]) -> Grant:
    return with_etag(
        Grant(
            name=row.name,
            spiffe_id=row.spiffe_id,
            role=Role(row.role),
            namespaces=tuple(json.loads(row.namespaces)),
        )
    )


def grant_row(grant: Grant) -> dict[str, Any]:
    return {
        "name": grant.name,
        "spiffe_id": grant.spiffe_id,
        "role": grant.role.value,
        "namespaces": to_json(list(grant.namespaces)),
    }


def with_etag(grant: Grant) -> Grant:
    """The grant with the etag of its content."""
    etag = etag_of({"name": grant.name, **grant_row(grant)})
    return Grant(name=grant.name, spiffe_id=grant.spiffe_id, role=grant.role, namespaces=grant.namespaces, etag=etag)


def _stored(row: Row[Any], body: str, revision: int, owner: str) -> Stored:
    etag = hashlib.sha256(body.encode()).hexdigest()[:32]
    return Stored(key=key_of(row), body=json.loads(body), etag=etag, revision=revision, owner=owner)


def _body(text: str | None) -> Body | None:
    return None if text is None else json.loads(text)
