"""Authorities between their shapes: the state machine's values, the store's rows; and what is appended to a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from ca.authority.journal import Journal, KeyNote, UpstreamMember
from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import AlreadyExists, FailedPrecondition
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority, authority_id
from ca.identity.certificate import load_authority
from ca.identity.issuer import load_anchor
from ca.ports import UpstreamBundle
from ca.store.values import AuthorityKeyRecord, AuthorityRecord, JournalRecords, UpstreamRecord


def to_records(journal: Journal) -> JournalRecords:
    return JournalRecords(
        authorities=tuple(to_record(authority) for authority in journal.authorities),
        upstream=tuple(_upstream_record(member) for member in journal.upstream),
        keys=tuple(
            AuthorityKeyRecord(server=note.server, key_id=note.key_id, kind=note.kind.value, since=note.since)
            for note in journal.keys
        ),
    )


def from_records(records: JournalRecords) -> Journal:
    return Journal(
        authorities=tuple(from_record(record) for record in records.authorities),
        upstream=tuple(_upstream_member(record) for record in records.upstream),
        keys=tuple(
            KeyNote(server=record.server, key_id=record.key_id, kind=AuthorityKind(record.kind), since=record.since)
            for record in records.keys
        ),
    )


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
        chain=authority.chain,
        upstream_authority_id=authority.upstream_authority_id,
        prepared_at=authority.prepared_at,
        activated_at=authority.activated_at,
        tainted_at=authority.tainted_at,
        revoked_at=authority.revoked_at,
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
        chain=record.chain,
        upstream_authority_id=record.upstream_authority_id,
        prepared_at=record.prepared_at,
        activated_at=record.activated_at,
        tainted_at=record.tainted_at,
        revoked_at=record.revoked_at,
    )


def root_member(certificate: bytes, server: str, *, tainted: bool = False) -> UpstreamMember:
    """A root (DER) of the upstream of `server`. Raises InvalidArgument (CERTIFICATE_MALFORMED)."""
    ends: datetime = load_authority(certificate).not_valid_after_utc
    return UpstreamMember(
        server=server,
        kind=AuthorityKind.X509,
        authority_id=authority_id(certificate),
        material=certificate,
        expires_at=ends,
        tainted=tainted,
    )


def key_member(key: JwtAuthority, server: str) -> UpstreamMember:
    """A JWT authority that the upstream of `server` keeps."""
    return UpstreamMember(
        server=server,
        kind=AuthorityKind.JWT,
        authority_id=key.key_id,
        material=key.public_key,
        expires_at=key.expires_at,
        tainted=key.tainted,
    )


def members_of(bundle: UpstreamBundle, server: str) -> tuple[UpstreamMember, ...]:
    """Each of them once; a root that can vouch for nobody is left out. Raises FailedPrecondition
    (UPSTREAM_ROOTS_MISSING) when none is left."""
    found = [
        root_member(one.certificate, server, tainted=one.tainted)
        for one in bundle.x509_authorities
        if (issuer := load_anchor(one.certificate)) is not None and issuer.flaw is None
    ]
    if not found:
        raise FailedPrecondition("the upstream names no root that could be used", reason="UPSTREAM_ROOTS_MISSING")
    found += [key_member(key, server) for key in bundle.jwt_authorities]
    return tuple({member.place: member for member in found}.values())


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


def _upstream_record(member: UpstreamMember) -> UpstreamRecord:
    return UpstreamRecord(
        server=member.server,
        kind=member.kind.value,
        authority_id=member.authority_id,
        material=member.material,
        expires_at=member.expires_at,
        tainted=member.tainted,
        gone_at=member.gone_at,
        revoked_at=member.revoked_at,
    )


def _upstream_member(record: UpstreamRecord) -> UpstreamMember:
    return UpstreamMember(
        server=record.server,
        kind=AuthorityKind(record.kind),
        authority_id=record.authority_id,
        material=record.material,
        expires_at=record.expires_at,
        tainted=record.tainted,
        gone_at=record.gone_at,
        revoked_at=record.revoked_at,
    )
