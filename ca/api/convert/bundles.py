"""Trust bundles on the wire, with their masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ca.api.convert.ids import instant, seconds
from ca.api.convert.text import named
from ca.errors import InvalidArgument
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.certificate import load_certificate
from ca.identity.jwk import key_parameters, load_public_key
from ca.identity.spiffe_id import TrustDomain
from ca.issuing import der
from ca.proto.spire import types_pb2

MAX_NUMBER = 2**63 - 1
"""Sequence numbers and refresh hints are kept as signed 64-bit numbers."""

_MASKED = ("x509_authorities", "jwt_authorities", "refresh_hint", "sequence_number", "wit_authorities")
_FIELDS = {
    "x509_authorities": "x509_authorities",
    "jwt_authorities": "jwt_authorities",
    "refresh_hint": "refresh_hint_seconds",
    "sequence_number": "sequence_number",
}


def bundle_message(bundle: TrustBundle, mask: types_pb2.BundleMask | None = None) -> types_pb2.Bundle:
    """The bundle as seen through the mask; the trust domain is always there."""
    message = types_pb2.Bundle(
        trust_domain=bundle.trust_domain.name,
        refresh_hint=bundle.refresh_hint_seconds,
        sequence_number=bundle.sequence_number,
        x509_authorities=[
            types_pb2.X509Certificate(asn1=authority.certificate, tainted=authority.tainted)
            for authority in bundle.x509_authorities
        ],
        jwt_authorities=[jwt_authority_message(authority) for authority in bundle.jwt_authorities],
    )
    if mask is not None:
        for field in _MASKED:
            if not getattr(mask, field):
                message.ClearField(field)  # type: ignore[arg-type]
    return message


def jwt_authority_message(authority: JwtAuthority) -> types_pb2.JWTKey:
    return types_pb2.JWTKey(
        public_key=authority.public_key,
        key_id=authority.key_id,
        expires_at=seconds(authority.expires_at),
        tainted=authority.tainted,
    )


def bundle_value(message: types_pb2.Bundle, trust_domain: TrustDomain) -> TrustBundle:
    """A bundle of this trust domain, whatever name the message has. WIT authorities are not kept.

    Raises InvalidArgument.
    """
    if not 0 <= message.refresh_hint <= MAX_NUMBER or message.sequence_number > MAX_NUMBER:
        raise InvalidArgument("refresh hint or sequence number is out of range", reason="NUMBER_OUT_OF_RANGE")
    return TrustBundle(
        trust_domain=trust_domain,
        x509_authorities=named("unable to parse X.509 authority", lambda: x509_authorities(message.x509_authorities)),
        jwt_authorities=named("unable to parse JWT authority", lambda: jwt_authorities(message.jwt_authorities)),
        refresh_hint_seconds=message.refresh_hint,
        sequence_number=message.sequence_number,
    )


def merged(before: TrustBundle, wanted: TrustBundle, mask: types_pb2.BundleMask | None) -> TrustBundle:
    """What is in the mask from `wanted`, the rest from `before`; everything from `wanted` without a mask."""
    chosen = {ours: getattr(wanted, ours) for field, ours in _FIELDS.items() if mask is None or getattr(mask, field)}
    return replace(before, **chosen)


def x509_authorities(messages: Iterable[types_pb2.X509Certificate]) -> tuple[X509Authority, ...]:
    """Each certificate once. Several in one `asn1` (SPIRE takes that) become as many authorities."""
    found: dict[bytes, X509Authority] = {}
    for message in messages:
        for certificate in _certificates(message.asn1):
            load_certificate(certificate)
            found.setdefault(certificate, X509Authority(certificate=certificate, tainted=message.tainted))
    return tuple(found.values())


def jwt_authorities(messages: Iterable[types_pb2.JWTKey]) -> tuple[JwtAuthority, ...]:
    return tuple(jwt_authority(message) for message in messages)


def jwt_authority(message: types_pb2.JWTKey) -> JwtAuthority:
    """Raises InvalidArgument for a key that has no id or cannot be published as a JWK."""
    if not message.key_id:
        raise InvalidArgument("missing key ID", reason="KEY_ID_MISSING")
    key_parameters(load_public_key(message.public_key))
    return JwtAuthority(
        key_id=message.key_id,
        public_key=message.public_key,
        expires_at=instant(message.expires_at),
        tainted=message.tainted,
    )


def _certificates(data: bytes) -> list[bytes]:
    try:
        reader = der.Reader(data)
        found: list[bytes] = []
        while reader.more or not found:
            found.append(reader.take_whole(der.SEQUENCE))
    except InvalidArgument as error:
        raise InvalidArgument("malformed certificate", reason="CERTIFICATE_MALFORMED") from error
    return found
