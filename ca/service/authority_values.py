"""Authorities between their three shapes: the state machine's value, the store's row, the bundle's member."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import AlreadyExists
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.store.values import AuthorityRecord


def to_record(authority: Authority) -> AuthorityRecord:
    return AuthorityRecord(
        server=authority.server,
        kind=authority.kind.value,
        authority_id=authority.authority_id,
        key_id=authority.key_id,
        key_type=authority.key_type,
        status=authority.status.value,
        not_before=authority.not_before,
        not_after=authority.not_after,
        material=authority.certificate or authority.public_key,
        tainted=authority.tainted,
    )


def from_record(record: AuthorityRecord) -> Authority:
    kind = AuthorityKind(record.kind)
    return Authority(
        kind=kind,
        authority_id=record.authority_id,
        key_id=record.key_id,
        key_type=record.key_type,
        status=AuthorityState(record.status),
        not_before=record.not_before,
        not_after=record.not_after,
        server=record.server,
        tainted=record.tainted,
        certificate=record.material if kind == AuthorityKind.X509 else b"",
        public_key=record.material if kind == AuthorityKind.JWT else b"",
    )


def publish(bundle: TrustBundle, authorities: Sequence[Authority]) -> TrustBundle:
    """The bundle with these authorities in it; what is there already stays as it is."""
    return append(
        bundle,
        [X509Authority(certificate=a.certificate, tainted=a.tainted) for a in authorities if a.certificate],
        [
            JwtAuthority(key_id=a.authority_id, public_key=a.public_key, expires_at=a.not_after, tainted=a.tainted)
            for a in authorities
            if a.public_key
        ],
    )


def append(bundle: TrustBundle, x509: Iterable[X509Authority], jwt: Iterable[JwtAuthority]) -> TrustBundle:
    """The bundle with these members in it; what is there already stays as it is.

    Raises AlreadyExists (KEY_ID_IN_USE) where a key id is another key's: one of the two would verify nothing.
    """
    certificates = {member.certificate: member for member in bundle.x509_authorities}
    keys = {member.key_id: member for member in bundle.jwt_authorities}
    for root in x509:
        certificates.setdefault(root.certificate, root)
    for key in jwt:
        if keys.setdefault(key.key_id, key).public_key != key.public_key:
            raise AlreadyExists(f"key ID `{key.key_id[:64]}` is in use by another key", reason="KEY_ID_IN_USE")
    return replace(bundle, x509_authorities=tuple(certificates.values()), jwt_authorities=tuple(keys.values()))


def withdraw(bundle: TrustBundle, authority: Authority) -> TrustBundle:
    """The bundle without this authority."""
    return replace(
        bundle,
        x509_authorities=tuple(m for m in bundle.x509_authorities if m.certificate != authority.certificate),
        jwt_authorities=tuple(m for m in bundle.jwt_authorities if m.key_id != authority.authority_id),
    )
