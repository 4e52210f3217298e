"""What an upstream server says in SPIRE's API, as values. A malformed part makes the whole answer unusable."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.bundle import JwtAuthority, X509Authority
from ca.identity.certificate import load_certificate, split_certificates
from ca.identity.jwk import key_parameters, load_public_key
from ca.ports import UpstreamBundle
from ca.proto.spire import types_pb2

MAX_AUTHORITIES = 1000


def bundle_value(message: types_pb2.Bundle) -> UpstreamBundle:
    """Raises FailedPrecondition (UPSTREAM_CHAIN_MALFORMED)."""
    if len(message.x509_authorities) > MAX_AUTHORITIES or len(message.jwt_authorities) > MAX_AUTHORITIES:
        raise _malformed(ValueError(f"more than {MAX_AUTHORITIES} authorities"))
    found: dict[bytes, X509Authority] = {}
    try:
        for authority in message.x509_authorities:
            for der in split_certificates(authority.asn1):
                load_certificate(der)
                found.setdefault(der, X509Authority(certificate=der, tainted=authority.tainted))
    except InvalidArgument as error:
        raise _malformed(error) from error
    return UpstreamBundle(
        x509_authorities=tuple(found.values()), jwt_authorities=jwt_authorities(message.jwt_authorities)
    )


def jwt_authorities(messages: Iterable[types_pb2.JWTKey]) -> tuple[JwtAuthority, ...]:
    """Raises FailedPrecondition (UPSTREAM_CHAIN_MALFORMED)."""
    try:
        return tuple(_jwt_authority(message) for message in messages)
    except (InvalidArgument, ValueError, OverflowError, OSError) as error:
        raise _malformed(error) from error


def jwt_message(key: JwtAuthority) -> types_pb2.JWTKey:
    return types_pb2.JWTKey(
        public_key=key.public_key,
        key_id=key.key_id,
        expires_at=0 if key.expires_at is None else int(key.expires_at.timestamp()),
        tainted=key.tainted,
    )


def _jwt_authority(message: types_pb2.JWTKey) -> JwtAuthority:
    if not message.key_id:
        raise InvalidArgument("a JWT authority has no key ID")
    key_parameters(load_public_key(message.public_key))
    return JwtAuthority(
        key_id=message.key_id,
        public_key=message.public_key,
        expires_at=datetime.fromtimestamp(message.expires_at, UTC) if message.expires_at else None,
        tainted=message.tainted,
    )


def _malformed(error: Exception) -> FailedPrecondition:
    return FailedPrecondition(
        f"the upstream's bundle holds what cannot be read: {error}", reason="UPSTREAM_CHAIN_MALFORMED"
    )
