"""Trust bundles as JSON: the SPIFFE bundle format and the Workload API's JWKS; read here, written by bundle_format.

Where the standard is tolerant this is: an element of `keys` that cannot be used is passed over and the rest is loaded
(RFC 7517 §5 says the same of malformed ones), for a key that is ignored trusts nobody. The document as a whole is
refused when its own members break the standard.
Maps of bundles (SPIFFE Bundle §5.1.1: G14, G15, G17, G18) are neither written nor read by any program here.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from ca.errors import InvalidArgument
from ca.identity import strict_json
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.bundle_format import (
    JWT_SVID_USE,
    X509_SVID_USE,
    format_jwks,
    format_oidc_jwks,
    format_plain_jwks,
    format_spiffe_bundle,
)
from ca.identity.certificate import load_authority
from ca.identity.jwk import KNOWN_KEY_TYPES, parse_signing_key
from ca.identity.spiffe_id import TrustDomain

__all__ = [
    "MAX_BUNDLE_BYTES",
    "format_jwks",
    "format_oidc_jwks",
    "format_plain_jwks",
    "format_spiffe_bundle",
    "parse_spiffe_bundle",
    "parse_workload_jwks",
]

MAX_BUNDLE_BYTES = 4 * 1024 * 1024
MAX_NUMBER = 2**64 - 1


def parse_spiffe_bundle(document: str | bytes, trust_domain: TrustDomain) -> TrustBundle:
    """A SPIFFE bundle (SPIFFE Trust Domain and Bundle §4) of this trust domain.

    `sequence_number` and `refresh_hint_seconds` are 0 where the document has none; nothing but `keys` is required
    and unknown members are passed over. No usable key gives a bundle without authorities, which vouches for nothing.
    Raises InvalidArgument (reason BUNDLE_MALFORMED).
    """
    members = _load(document)
    keys = _keys(members)  # only `keys` is asked for, SPIFFE Bundle §4.1 (G1)
    x509 = (_x509_authority(key) for key in keys if key.get("use") == X509_SVID_USE)
    # Only keys for JWT-SVIDs ever get into `jwt_authorities`, JWT-SVID §6.2 (C19).
    jwt = (_jwt_authority(key) for key in keys if key.get("use") == JWT_SVID_USE)
    return TrustBundle(
        trust_domain=trust_domain,
        x509_authorities=tuple(dict.fromkeys(a for a in x509 if a is not None)),
        jwt_authorities=tuple(dict.fromkeys(a for a in jwt if a is not None)),
        refresh_hint_seconds=_number(members, "spiffe_refresh_hint"),  # SPIFFE Bundle §4.1.2 (G6)
        sequence_number=_number(members, "spiffe_sequence"),  # SPIFFE Bundle §4.1.1 (G3)
    )


def parse_workload_jwks(document: str | bytes, trust_domain: TrustDomain) -> TrustBundle:
    """A JWT bundle as the Workload API gives it: JWT authorities alone.

    SPIRE leaves `use` out there, so an absent one is accepted; a key with any other `use` than `jwt-svid` is not
    taken (JWT-SVID §6.2). Raises InvalidArgument (reason BUNDLE_MALFORMED).
    """
    authorities = (
        _jwt_authority(key) for key in _keys(_load(document)) if "use" not in key or key["use"] == JWT_SVID_USE
    )
    return TrustBundle(
        trust_domain=trust_domain, jwt_authorities=tuple(dict.fromkeys(a for a in authorities if a is not None))
    )


def _load(document: str | bytes) -> dict[str, Any]:
    try:
        members = strict_json.loads(document, max_bytes=MAX_BUNDLE_BYTES)
    except ValueError as error:
        raise _malformed(str(error)) from error
    if not isinstance(members, dict):
        raise _malformed("not a JSON object")
    return members


def _keys(members: dict[str, Any]) -> list[dict[str, Any]]:
    keys = members.get("keys")
    if not isinstance(keys, list):  # SPIFFE Bundle §4.1.3 (G7)
        raise _malformed("`keys` is missing or no array")
    if not all(isinstance(key, dict) for key in keys):
        raise _malformed("an element of `keys` is no object")
    # Unknown or missing key type: that element alone is ignored, SPIFFE Bundle §4.1.3, §4.2.1 (G8). A `use` that is
    # unknown, missing or of no string matches neither profile below and is ignored the same way, §4.2.2 (G8).
    return [key for key in keys if isinstance(key.get("kty"), str) and key["kty"] in KNOWN_KEY_TYPES]


def _x509_authority(key: dict[str, Any]) -> X509Authority | None:
    chain = key.get("x5c")
    if not isinstance(chain, list) or not chain:  # X509-SVID §6.2 (B30)
        return None
    # The first value is the authority, all others are ignored, X509-SVID §6.2 (B31). The certificate is what counts:
    # the members that repeat its key are not looked at.
    try:
        certificate = base64.b64decode(chain[0], validate=True)
        load_authority(certificate)
    except (TypeError, ValueError, binascii.Error, InvalidArgument):
        return None  # RFC 7517 §5
    return X509Authority(certificate=certificate)


def _jwt_authority(key: dict[str, Any]) -> JwtAuthority | None:
    key_id = key.get("kid")
    if not isinstance(key_id, str) or not key_id:
        return None  # no token can name it: `kid` is mandatory, JWT-SVID §6.1 (C18)
    try:
        return JwtAuthority(key_id=key_id, public_key=parse_signing_key(key))
    except ValueError:
        return None  # RFC 7517 §5


def _number(members: dict[str, Any], name: str) -> int:
    value = members.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise _malformed(f"`{name}` is no integer of 64 bits")
    return value


def _malformed(detail: str) -> InvalidArgument:
    return InvalidArgument(f"malformed bundle: {detail}", reason="BUNDLE_MALFORMED")
