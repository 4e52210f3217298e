"""`caadmin bundle`: the trust bundle, by which everybody verifies what this server issues."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.output import Output, OutputOption, emit
from ca.identity.spiffe_id import TrustDomain

if TYPE_CHECKING:
    from ca.identity.bundle import TrustBundle
    from ca.proto.spire import types_pb2

app = typer.Typer(help="The trust bundle, by which everybody verifies what this server issues.")


class Format(StrEnum):
    """Shapes of a bundle."""

    PEM = "pem"
    SPIFFE = "spiffe"
    JWKS = "jwks"


@app.callback()
def bundle() -> None:
    """The trust bundle, by which everybody verifies what this server issues."""


@app.command()
def show(
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="pem: X.509 authorities; spiffe: the SPIFFE bundle with all keys; jwks: JWT keys as the Workload API "
            "gives them.",
        ),
    ] = Format.PEM,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Print the bundle. With --output json or yaml: what it holds, described."""
    from ca.proto.spire import server_bundle_pb2, server_bundle_pb2_grpc

    with channel(server_socket(socket)) as opened:
        stub = server_bundle_pb2_grpc.BundleStub(opened)
        received = from_wire(stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=CALL_SECONDS))
    data = describe(received) if output is not Output.TABLE else None
    emit(data, output, lambda: _format(received, format_).rstrip("\n"))


def from_wire(message: types_pb2.Bundle) -> TrustBundle:
    """A bundle message as a value. Raises InvalidArgument for a malformed trust domain."""
    from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority

    return TrustBundle(
        trust_domain=TrustDomain.parse(message.trust_domain),
        x509_authorities=tuple(X509Authority(certificate=a.asn1, tainted=a.tainted) for a in message.x509_authorities),
        jwt_authorities=tuple(
            JwtAuthority(
                key_id=key.key_id,
                public_key=key.public_key,
                expires_at=datetime.fromtimestamp(key.expires_at, UTC) if key.expires_at else None,
                tainted=key.tainted,
            )
            for key in message.jwt_authorities
        ),
        refresh_hint_seconds=message.refresh_hint,
        sequence_number=message.sequence_number,
    )


def describe(received: TrustBundle) -> dict[str, Any]:
    """What a bundle holds: authority and key IDs with the end of their lives."""
    return {
        "trust_domain": received.trust_domain.name,
        "sequence_number": received.sequence_number,
        "refresh_hint_seconds": received.refresh_hint_seconds,
        "x509_authorities": [
            {**describe_authority(authority.certificate), "tainted": authority.tainted}
            for authority in received.x509_authorities
        ],
        "jwt_authorities": [
            {
                "key_id": authority.key_id,
                "expires_at": _rfc3339(authority.expires_at) if authority.expires_at else None,
                "tainted": authority.tainted,
            }
            for authority in received.jwt_authorities
        ],
    }


def describe_authority(certificate: bytes) -> dict[str, Any]:
    """An X.509 authority: its key ID and lifetime. Raises InvalidArgument for what is no certificate."""
    from cryptography import x509

    from ca.errors import InvalidArgument
    from ca.identity.bundle import authority_id

    try:
        parsed = x509.load_der_x509_certificate(certificate)
    except ValueError as error:
        raise InvalidArgument("the bundle holds something that is no certificate", reason="BUNDLE_MALFORMED") from error
    return {
        "authority_id": authority_id(certificate),
        "not_before": _rfc3339(parsed.not_valid_before_utc),
        "not_after": _rfc3339(parsed.not_valid_after_utc),
    }


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _format(received: TrustBundle, format_: Format) -> str:
    from ca.identity.bundle_json import format_jwks, format_spiffe_bundle
    from ca.identity.bundle_pem import format_pem

    make = {Format.PEM: format_pem, Format.SPIFFE: format_spiffe_bundle, Format.JWKS: format_jwks}
    return make[format_](received)
