"""Authorities between their three shapes: the state machine's value, the store's row, the bundle's member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ca.authority.state import Authority, AuthorityKind, AuthorityState
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
    x509 = {member.certificate: member for member in bundle.x509_authorities}
    jwt = {member.key_id: member for member in bundle.jwt_authorities}
    for one in authorities:
        if one.kind == AuthorityKind.X509:
            x509.setdefault(one.certificate, X509Authority(certificate=one.certificate, tainted=one.tainted))
        else:
            member = JwtAuthority(
                key_id=one.authority_id, public_key=one.public_key, expires_at=one.not_after, tainted=one.tainted
            )
            jwt.setdefault(one.authority_id, member)
    return replace(bundle, x509_authorities=tuple(x509.values()), jwt_authorities=tuple(jwt.values()))


def withdraw(bundle: TrustBundle, authority: Authority) -> TrustBundle:
    """The bundle without this authority."""
    return replace(
        bundle,
        x509_authorities=tuple(m for m in bundle.x509_authorities if m.certificate != authority.certificate),
        jwt_authorities=tuple(m for m in bundle.jwt_authorities if m.key_id != authority.authority_id),
    )
