"""Trust bundles as `caadmin` meets them: from the wire and onto it, from files, and described for people."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ca.cli.output import columns, fields, timestamp, until
from ca.errors import InvalidArgument
from ca.identity.spiffe_id import TrustDomain

if TYPE_CHECKING:
    from ca.identity.bundle import TrustBundle
    from ca.proto.spire import types_pb2


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


def read_bundle(file: Path, trust_domain: TrustDomain, *, pem: bool | None) -> TrustBundle:
    """The bundle in a file, `-` for standard input; PEM, a SPIFFE bundle, or with None whichever it looks like.

    Raises InvalidArgument (FILE, BUNDLE_EMPTY, and what the two formats give).
    """
    from ca.identity.bundle_json import MAX_BUNDLE_BYTES, parse_spiffe_bundle
    from ca.identity.bundle_pem import parse_pem

    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(MAX_BUNDLE_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"cannot read `{file}`: {error.strerror}", reason="FILE") from error
    looks_like_pem = not data.lstrip().startswith(b"{")
    parse = parse_pem if (looks_like_pem if pem is None else pem) else parse_spiffe_bundle
    bundle = parse(data, trust_domain)
    if not bundle.x509_authorities and not bundle.jwt_authorities:
        raise InvalidArgument(
            f"no key in `{file}` is of any use", reason="BUNDLE_EMPTY", hint="a SPIFFE bundle's keys say their `use`"
        )
    return bundle


def describe(bundle: TrustBundle) -> dict[str, Any]:
    """What a bundle holds: authority and key IDs with the end of their lives."""
    return {
        "trust_domain": bundle.trust_domain.name,
        "sequence_number": bundle.sequence_number,
        "refresh_hint_seconds": bundle.refresh_hint_seconds,
        "x509_authorities": [
            {**describe_authority(authority.certificate), "tainted": authority.tainted}
            for authority in bundle.x509_authorities
        ],
        "jwt_authorities": [
            {
                "key_id": authority.key_id,
                "expires_at": timestamp(int(authority.expires_at.timestamp())) if authority.expires_at else None,
                "tainted": authority.tainted,
            }
            for authority in bundle.jwt_authorities
        ],
    }


def describe_authority(certificate: bytes) -> dict[str, Any]:
    """An X.509 authority: its key ID and lifetime. Raises InvalidArgument for what is no certificate."""
    from cryptography import x509

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


def lost(before: TrustBundle, after: TrustBundle, now: datetime) -> list[str]:
    """What `after` no longer vouches for though `before` does, in words; what has expired is no loss."""
    kept = {authority.certificate for authority in after.x509_authorities}
    words = [
        f"the X.509 authority {value['authority_id']}, valid until {until(value['not_after'], now)}"
        for authority in before.x509_authorities
        if authority.certificate not in kept
        and datetime.fromisoformat((value := describe_authority(authority.certificate))["not_after"]) > now
    ]
    keys = {(authority.key_id, authority.public_key) for authority in after.jwt_authorities}
    words += [
        f"the JWT key {authority.key_id}"
        for authority in before.jwt_authorities
        if (authority.key_id, authority.public_key) not in keys
        and (authority.expires_at is None or authority.expires_at > now)
    ]
    if 0 < after.sequence_number < before.sequence_number:
        words.append(f"the newer state: sequence number {before.sequence_number}, in the file {after.sequence_number}")
    return words


def table(bundles: list[dict[str, Any]]) -> str:
    """Described bundles, a line each."""
    headers = ["TRUST DOMAIN", "X.509 AUTHORITIES", "FIRST EXPIRES", "JWT KEYS", "SEQUENCE"]
    rows = (
        [
            bundle["trust_domain"],
            len(bundle["x509_authorities"]),
            until(min(ends)) if (ends := [value["not_after"] for value in bundle["x509_authorities"]]) else "-",
            len(bundle["jwt_authorities"]),
            bundle["sequence_number"],
        ]
        for bundle in bundles
    )
    return columns(headers, rows, empty="no bundle of another trust domain")


def details(bundle: dict[str, Any]) -> str:
    """A described bundle."""
    return fields(
        [
            ("Trust domain", bundle["trust_domain"]),
            (
                "X.509 authorities",
                [f"{a['authority_id']}, expires {until(a['not_after'])}" for a in bundle["x509_authorities"]],
            ),
            ("JWT keys", [key["key_id"] for key in bundle["jwt_authorities"]]),
            ("Sequence", bundle["sequence_number"]),
            ("Refresh hint", f"{bundle['refresh_hint_seconds']} s" if bundle["refresh_hint_seconds"] else None),
        ]
    )


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
