"""The extensions of SVIDs and authorities, as DER (RFC 5280 §4.2, X509-SVID §4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ca.issuing import der

CRITICAL = b"\x01\x01\xff"

SUBJECT_KEY_IDENTIFIER = der.object_identifier("2.5.29.14")
KEY_USAGE = der.object_identifier("2.5.29.15")
SUBJECT_ALT_NAME = der.object_identifier("2.5.29.17")
BASIC_CONSTRAINTS = der.object_identifier("2.5.29.19")
AUTHORITY_KEY_IDENTIFIER = der.object_identifier("2.5.29.35")
EXTENDED_KEY_USAGE = der.object_identifier("2.5.29.37")

SERVER_AUTH = der.object_identifier("1.3.6.1.5.5.7.3.1")
CLIENT_AUTH = der.object_identifier("1.3.6.1.5.5.7.3.2")

DIGITAL_SIGNATURE = b"\x03\x02\x07\x80"
DIGITAL_SIGNATURE_KEY_ENCIPHERMENT = b"\x03\x02\x05\xa0"
KEY_CERT_SIGN_CRL_SIGN = b"\x03\x02\x01\x06"
"""Key usages as named BIT STRINGs without trailing zero bits (X.690 §11.2.2)."""

KEY_IDENTIFIER_BYTES = 20
DNS_NAME = 0x82
URI = 0x86

KeyKind = Literal["ec", "rsa"]


def extension(oid: bytes, value: bytes, *, critical: bool = False) -> bytes:
    """One Extension; `critical` FALSE is the default and therefore not written (X.690 §11.5)."""
    mark = CRITICAL if critical else b""
    return der.tlv(der.SEQUENCE, oid + mark + der.tlv(der.OCTET_STRING, value))


def leaf_key_usage(kind: KeyKind) -> bytes:
    """What a leaf's key may do: sign (X509-SVID §4.3, B15); RSA may also carry keys, EC may not (RFC 8813 §3)."""
    return DIGITAL_SIGNATURE if kind == "ec" else DIGITAL_SIGNATURE_KEY_ENCIPHERMENT


def leaf_extensions(kind: KeyKind) -> bytes:
    """Key usage, extended key usage and basic constraints of a leaf, in SPIRE's order."""
    return (
        extension(KEY_USAGE, leaf_key_usage(kind), critical=True)  # X509-SVID §4.3 (B12, B13, B15, B16, B17)
        + extension(EXTENDED_KEY_USAGE, der.tlv(der.SEQUENCE, SERVER_AUTH + CLIENT_AUTH))  # §4.4 (B18, B19)
        + extension(BASIC_CONSTRAINTS, b"\x30\x00", critical=True)  # X509-SVID §4.1 (B10): cA FALSE is the default
    )


def authority_extensions() -> bytes:
    """Key usage and basic constraints of a signing certificate, in SPIRE's order; no path length."""
    return extension(  # X509-SVID §4.3 (B12, B13, B14)
        KEY_USAGE, KEY_CERT_SIGN_CRL_SIGN, critical=True
    ) + extension(BASIC_CONSTRAINTS, b"\x30\x03\x01\x01\xff", critical=True)  # X509-SVID §4.1 (B9): cA TRUE


# The subject key identifier up to its 20 bytes, which are all that varies in it.
SUBJECT_KEY_HEAD = extension(SUBJECT_KEY_IDENTIFIER, der.tlv(der.OCTET_STRING, bytes(20)))[:-20]


def authority_key(identifier: bytes) -> bytes:
    """Authority key identifier with the keyid alone (RFC 5280 §4.2.1.1)."""
    return extension(AUTHORITY_KEY_IDENTIFIER, der.tlv(der.SEQUENCE, der.tlv(0x80, identifier)))


def alternative_names(uri: str, dns_names: Sequence[str]) -> bytes:
    """GeneralNames: the DNS names in their order, then the one URI (X509-SVID §2, B1)."""
    names = der.tlv(URI, uri.encode("ascii"))
    if dns_names:
        names = b"".join(der.tlv(DNS_NAME, name.encode("ascii")) for name in dns_names) + names
    return der.tlv(der.SEQUENCE, names)
