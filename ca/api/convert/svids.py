"""Issued SVIDs on the wire."""

from __future__ import annotations

from ca.api.convert.ids import seconds
from ca.issuing.lifetime import Lifetime
from ca.proto.burgee import admin_pb2
from ca.proto.spire import types_pb2
from ca.service.issuance_jobs import IssuedX509
from ca.service.issuance_jwt import IssuedJwt


def x509_message(svid: IssuedX509) -> types_pb2.X509SVID:
    message = types_pb2.X509SVID()
    fill_x509(message, svid)
    return message


def fill_x509(message: types_pb2.X509SVID, svid: IssuedX509) -> None:
    """In place: a message that is handed to another's constructor is copied."""
    message.cert_chain.extend(svid.chain)
    identity, value = message.id, svid.spiffe_id
    identity.trust_domain = value.trust_domain.name
    identity.path = value.path
    message.expires_at = seconds(svid.not_after)


def jwt_message(svid: IssuedJwt) -> types_pb2.JWTSVID:
    message = types_pb2.JWTSVID()
    fill_jwt(message, svid)
    return message


def fill_jwt(message: types_pb2.JWTSVID, svid: IssuedJwt) -> None:
    """In place, as above."""
    message.token = svid.token
    message.id.trust_domain = svid.spiffe_id.trust_domain.name
    message.id.path = svid.spiffe_id.path
    message.expires_at = seconds(svid.expires_at)
    message.issued_at = seconds(svid.issued_at)


def lifetime_message(lifetime: Lifetime) -> admin_pb2.Lifetime:
    """What was asked, what was granted, and what shortened it."""
    return admin_pb2.Lifetime(
        requested_seconds=lifetime.requested_seconds,
        granted_seconds=lifetime.granted_seconds,
        caps=[
            admin_pb2.Cap(reason=cap.reason, detail=cap.detail, not_after=seconds(cap.not_after))
            for cap in lifetime.caps
        ],
    )
