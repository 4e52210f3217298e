"""Between the server's messages and our values: entries and bundles, both ways."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.message import DecodeError

from ca.errors import (
    STATUS,
    AlreadyExists,
    BurgeeError,
    Denied,
    Exhausted,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import quote
from ca.proto.burgee import node_pb2
from ca.proto.spire import types_pb2
from ca.runtime.item_status import split_message
from sds.feed import BUNDLE, ENTRY, POLICY, SET, Change, ResumeToken


def read_resources(message: node_pb2.SyncResponse) -> tuple[Change, dict[str, str]]:
    """A push as values, and per kind what was wrong with what could not be read.

    Kinds that this version does not know are left out. One malformed entry must not keep the others from coming: it
    counts as removed, because its old version is no longer what the server means. A malformed bundle is passed over.
    """
    entries: list[RegistrationEntry] = []
    bundles: list[TrustBundle] = []
    broken: list[str] = []
    problems: dict[str, str] = {}
    for resource in message.resources:
        try:
            if resource.kind == ENTRY:
                entries.append(entry_from_wire(types_pb2.Entry.FromString(resource.payload)))
            elif resource.kind == BUNDLE:
                bundles.append(bundle_from_wire(types_pb2.Bundle.FromString(resource.payload)))
        except (BurgeeError, DecodeError) as error:
            problems[resource.kind] = f"{resource.kind} {quote(resource.name)} is malformed: {error}"
            broken += [resource.name] if resource.kind == ENTRY else []
    change = Change(
        token=ResumeToken(message.store_epoch, message.revision),
        entries=tuple(entries),
        bundles=tuple(bundles),
        removed_entries=(*(r.name for r in message.removed if r.kind == ENTRY), *broken),
        removed_bundles=_removed_bundles(message, problems),
        policies=_policies(message),
        removed_policies=any(r.kind == POLICY and r.name == SET for r in message.removed),
    )
    return change, problems


def _policies(message: node_pb2.SyncResponse) -> bytes | None:
    """As they came: they are read elsewhere, and take longer."""
    found = [r.payload for r in message.resources if r.kind == POLICY and r.name == SET]
    return found[-1] if found else None


def _removed_bundles(message: node_pb2.SyncResponse, problems: dict[str, str]) -> tuple[TrustDomain, ...]:
    """A name that is no trust domain cannot be held here, so there is nothing to remove for it."""
    removed = []
    for resource in message.removed:
        try:
            if resource.kind == BUNDLE:
                removed.append(TrustDomain.parse(resource.name))
        except InvalidArgument as error:
            problems[BUNDLE] = f"removed bundle {quote(resource.name)} is malformed: {error}"
    return tuple(removed)


def entry_from_wire(message: types_pb2.Entry) -> RegistrationEntry:
    """Raises InvalidArgument when the server sent what cannot be an entry."""
    return RegistrationEntry(
        id=message.id,
        spiffe_id=id_from_wire(message.spiffe_id),
        parent_id=id_from_wire(message.parent_id),
        selectors=frozenset(Selector(s.type, s.value) for s in message.selectors),
        x509_svid_ttl_seconds=message.x509_svid_ttl,
        jwt_svid_ttl_seconds=message.jwt_svid_ttl,
        federates_with=tuple(TrustDomain.parse(name) for name in message.federates_with),
        admin=message.admin,
        downstream=message.downstream,
        expires_at=time_from_wire(message.expires_at),
        dns_names=tuple(message.dns_names),
        revision_number=message.revision_number,
        store_svid=message.store_svid,
        hint=message.hint,
        created_at=time_from_wire(message.created_at),
        disable_x509_svid_prefetch=message.additional_attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti=message.additional_attributes.jwt_svid_include_jti,
    )


def polled_entry_from_wire(message: types_pb2.Entry, trust_domain: TrustDomain) -> RegistrationEntry:
    """An entry read with a mask that leaves its parent out: the trust domain stands in for it (see `is_partial`).

    Raises InvalidArgument when the server sent what cannot be an entry.
    """
    if not message.HasField("parent_id"):
        message.parent_id.trust_domain = trust_domain.name
    return entry_from_wire(message)


def entry_to_wire(entry: RegistrationEntry) -> types_pb2.Entry:
    return types_pb2.Entry(
        id=entry.id,
        spiffe_id=id_to_wire(entry.spiffe_id),
        parent_id=id_to_wire(entry.parent_id),
        selectors=[types_pb2.Selector(type=s.type, value=s.value) for s in sorted(entry.selectors)],
        x509_svid_ttl=entry.x509_svid_ttl_seconds,
        jwt_svid_ttl=entry.jwt_svid_ttl_seconds,
        federates_with=[domain.name for domain in entry.federates_with],
        admin=entry.admin,
        downstream=entry.downstream,
        expires_at=time_to_wire(entry.expires_at),
        dns_names=entry.dns_names,
        revision_number=entry.revision_number,
        store_svid=entry.store_svid,
        hint=entry.hint,
        created_at=time_to_wire(entry.created_at),
        additional_attributes=types_pb2.Entry.AdditionalAttributes(
            disable_x509_svid_prefetch=entry.disable_x509_svid_prefetch,
            jwt_svid_include_jti=entry.jwt_svid_include_jti,
        ),
    )


def bundle_from_wire(message: types_pb2.Bundle) -> TrustBundle:
    """Raises InvalidArgument for a name that is no trust domain. Certificates are parsed where they are used."""
    return TrustBundle(
        trust_domain=TrustDomain.parse(message.trust_domain),
        x509_authorities=tuple(X509Authority(certificate=a.asn1, tainted=a.tainted) for a in message.x509_authorities),
        jwt_authorities=tuple(
            JwtAuthority(
                key_id=key.key_id,
                public_key=key.public_key,
                expires_at=time_from_wire(key.expires_at),
                tainted=key.tainted,
            )
            for key in message.jwt_authorities
        ),
        refresh_hint_seconds=message.refresh_hint,
        sequence_number=message.sequence_number,
    )


def bundle_to_wire(bundle: TrustBundle) -> types_pb2.Bundle:
    return types_pb2.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=[
            types_pb2.X509Certificate(asn1=a.certificate, tainted=a.tainted) for a in bundle.x509_authorities
        ],
        jwt_authorities=[
            types_pb2.JWTKey(
                key_id=key.key_id,
                public_key=key.public_key,
                expires_at=time_to_wire(key.expires_at),
                tainted=key.tainted,
            )
            for key in bundle.jwt_authorities
        ],
        refresh_hint=bundle.refresh_hint_seconds,
        sequence_number=bundle.sequence_number,
    )


def id_from_wire(message: types_pb2.SPIFFEID) -> SpiffeId:
    """Raises InvalidArgument."""
    return SpiffeId.of(TrustDomain.parse(message.trust_domain), message.path)


def id_to_wire(spiffe_id: SpiffeId) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)


def time_from_wire(seconds: int) -> datetime | None:
    """Seconds since the epoch; 0 means none. Raises InvalidArgument for a time outside the years 1 to 9999."""
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (OSError, OverflowError, ValueError):
        raise InvalidArgument(f"{seconds} s since the epoch is no time", reason="TIME") from None


def time_to_wire(moment: datetime | None) -> int:
    return int(moment.timestamp()) if moment else 0


def status_error(status: types_pb2.Status) -> BurgeeError:
    """A result's own status inside a batch (gRPC status number and message), as a member of the family."""
    kind = _BY_NUMBER.get(status.code, Internal)
    detail, reason = split_message(status.message)
    return kind(detail, reason=reason or None)


_BY_NUMBER: dict[int, type[BurgeeError]] = {
    STATUS[kind.code][0]: kind
    for kind in (InvalidArgument, NotFound, AlreadyExists, Denied, Exhausted, FailedPrecondition, Unavailable)
}
