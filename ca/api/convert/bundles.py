"""Trust bundles on the wire, with their mask."""

from __future__ import annotations

from ca.api.convert.ids import seconds
from ca.identity.bundle import TrustBundle
from ca.proto.spire import types_pb2

_MASKED = ("x509_authorities", "jwt_authorities", "refresh_hint", "sequence_number", "wit_authorities")


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
        jwt_authorities=[
            types_pb2.JWTKey(
                public_key=authority.public_key,
                key_id=authority.key_id,
                expires_at=seconds(authority.expires_at),
                tainted=authority.tainted,
            )
            for authority in bundle.jwt_authorities
        ],
    )
    if mask is not None:
        for field in _MASKED:
            if not getattr(mask, field):
                message.ClearField(field)  # type: ignore[arg-type]
    return message
