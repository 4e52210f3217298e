"""Writing trust bundles as JSON, member for member in the order and indentation of SPIRE's documents."""

from __future__ import annotations

import base64
import json
from typing import Any

from ca.errors import InvalidArgument
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.certificate import load_authority
from ca.identity.jwk import key_parameters, load_public_key

X509_SVID_USE = "x509-svid"
JWT_SVID_USE = "jwt-svid"
OIDC_USE = "sig"


def format_spiffe_bundle(bundle: TrustBundle) -> str:
    """The SPIFFE bundle document: X.509 authorities, then JWT authorities, in the bundle's order.

    Taints and expiry times are not published; a refresh hint of 0 is left out. Raises InvalidArgument for an
    authority that cannot be written.
    """
    document: dict[str, Any] = {
        "keys": [_x509_jwk(a) for a in bundle.x509_authorities]
        + [_jwt_jwk(a, JWT_SVID_USE) for a in bundle.jwt_authorities],
        # The store changes the number with each change of contents, SPIFFE Bundle §4.1.1 (G2, G3, G4).
        "spiffe_sequence": bundle.sequence_number,
    }
    if bundle.refresh_hint_seconds:
        document["spiffe_refresh_hint"] = bundle.refresh_hint_seconds  # whole seconds, SPIFFE Bundle §4.1.2 (G5, G6)
    return _dump(document)


def format_jwks(bundle: TrustBundle) -> str:
    """The Workload API's JWT bundle: keys for JWT-SVIDs alone, each with `use`."""
    return _dump({"keys": [_jwt_jwk(a, JWT_SVID_USE) for a in bundle.jwt_authorities]})


def format_plain_jwks(bundle: TrustBundle) -> str:
    """A JWKS for software that knows nothing of SPIFFE: JWT keys without `use`."""
    return _dump({"keys": [_jwt_jwk(a, None) for a in bundle.jwt_authorities]})


def format_oidc_jwks(bundle: TrustBundle) -> str:
    """The JWKS of an OIDC discovery document: JWT keys with `use: sig` (OIDC Discovery §3)."""
    return _dump({"keys": [_jwt_jwk(a, OIDC_USE) for a in bundle.jwt_authorities]})


def _x509_jwk(authority: X509Authority) -> dict[str, Any]:
    key_type, parameters = key_parameters(load_authority(authority.certificate).public_key())
    return {
        "use": X509_SVID_USE,  # X509-SVID §6.1 (B25); SPIFFE Bundle §4.2.2 (G13)
        **key_type,  # SPIFFE Bundle §4.2.1 (G12)
        **parameters,
        # Exactly one certificate, the authority itself, X509-SVID §6.1 (B27, B28). Self-signed unless the authority
        # came from an upstream that gave an intermediate (B29). There is no `kid`, X509-SVID §6.1 (B26).
        "x5c": [base64.b64encode(authority.certificate).decode("ascii")],
    }


def _jwt_jwk(authority: JwtAuthority, use: str | None) -> dict[str, Any]:
    if not authority.key_id:
        raise InvalidArgument("a JWT authority has no key id", reason="JWT_AUTHORITY_NO_KEY_ID")
    key_type, parameters = key_parameters(load_public_key(authority.public_key))
    return {
        **({"use": use} if use else {}),  # JWT-SVID §6.1 (C17)
        **key_type,
        "kid": authority.key_id,  # JWT-SVID §6.1 (C18)
        **parameters,  # and nothing else: no `alg`, SPIFFE Bundle §4.2 (G11)
    }


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=4)  # members of dicts are unique, SPIFFE Bundle §6.3 (G19)
