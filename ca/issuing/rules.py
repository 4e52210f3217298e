"""The lint's rules: one fact each about a to-be-signed certificate, with the section that asks for it.

A rule says which parts it reads. It returns what is wrong, or an empty string. It compares the bytes with `Expected`,
which the issuer decided on before any bytes were written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from ca.errors import InvalidArgument
from ca.identity.dns_name import check_dns_name
from ca.identity.spiffe_id import SpiffeId
from ca.issuing import der
from ca.issuing import extensions as ext
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.lifetime import Lifetime
from ca.issuing.names import UPPER_BOUNDS, decode_name
from ca.issuing.parts import VERSION_3, Extension, Parts
from ca.issuing.spki import PublicKeyInfo
from ca.issuing.times import decode_validity


class Expected(NamedTuple):
    """What the certificate is meant to say. `kind` is `leaf` or `authority`; a root's issuer is itself."""

    kind: Literal["leaf", "authority"]
    issuer: IssuerTemplate
    serial: int
    subject: bytes
    spiffe_id: SpiffeId
    dns_names: tuple[str, ...]
    lifetime: Lifetime
    key: PublicKeyInfo
    key_identifier: bytes


Check = Callable[[Parts, Expected], str]


class Rule(NamedTuple):
    """A rule of the lint. `check` looks at the fields of `Parts` in `reads` and those of `Expected` in `expects`."""

    name: str
    citation: str
    reads: frozenset[str]
    expects: frozenset[str]
    check: Check


def _version(parts: Parts, want: Expected) -> str:
    return "" if parts.version == VERSION_3 else "version is not 3"


def _serial(parts: Parts, want: Expected) -> str:
    if len(parts.serial) > 20:
        return "serial number has more than 20 octets"
    serial = der.unsigned(parts.serial)
    if serial <= 0:
        return "serial number is not positive"
    return "" if serial == want.serial else "serial number is not the one that is recorded"


def _algorithm(parts: Parts, want: Expected) -> str:
    return "" if parts.algorithm == want.issuer.algorithm else "signature algorithm is not the issuer key's"


def _issuer(parts: Parts, want: Expected) -> str:
    if len(parts.issuer) <= 2:
        return "issuer is empty"
    return "" if parts.issuer == want.issuer.name else "issuer is not the subject of the issuing certificate"


def _validity(parts: Parts, want: Expected) -> str:
    not_before, not_after = decode_validity(parts.validity)
    if not_before >= not_after:
        return "notAfter is not later than notBefore"
    planned = want.lifetime
    if not_before != planned.not_before or not_after != planned.not_after:
        return "validity is not the planned one"
    return "" if not_after <= want.issuer.not_after else "certificate would outlive its issuer"


def _subject(parts: Parts, want: Expected) -> str:
    if parts.subject != want.subject:
        return "subject is not the profile's"
    if len(parts.subject) <= 2:
        return "subject of an authority is empty" if want.kind == "authority" else ""
    if parts.subject in _KNOWN_SUBJECTS:
        return ""
    for attribute in decode_name(parts.subject):
        bound = UPPER_BOUNDS.get(attribute.oid)
        if not attribute.text or (bound is not None and len(attribute.text) > bound):
            return "subject attribute is empty or longer than its upper bound"
    return ""


# C=US, O=SPIRE, which most certificates carry: checked once by the tests instead of each time.
_KNOWN_SUBJECTS = frozenset({bytes.fromhex("301d310b3009060355040613025553310e300c060355040a13055350495245")})


def _key(parts: Parts, want: Expected) -> str:
    return "" if parts.key == want.key.der else "public key is not the one that was proven"


def _no_unique_ids(parts: Parts, want: Expected) -> str:
    return "unique identifiers must not be used" if parts.unique_ids else ""


_LEAF_EXTENSIONS = frozenset(
    {
        ext.KEY_USAGE,
        ext.EXTENDED_KEY_USAGE,
        ext.BASIC_CONSTRAINTS,
        ext.SUBJECT_KEY_IDENTIFIER,
        ext.AUTHORITY_KEY_IDENTIFIER,
        ext.SUBJECT_ALT_NAME,
    }
)
_AUTHORITY_EXTENSIONS = _LEAF_EXTENSIONS - {ext.EXTENDED_KEY_USAGE}


def _extensions(parts: Parts, want: Expected) -> str:
    if len(set(parts.oids)) != len(parts.oids):
        return "an extension appears twice"
    known = _LEAF_EXTENSIONS if want.kind == "leaf" else _AUTHORITY_EXTENSIONS
    return "" if known.issuperset(parts.oids) else "there is an extension that no profile has"


def _key_usage_there(parts: Parts, want: Expected) -> str:
    usage = parts.key_usage
    if usage is None:  # X509-SVID §4.3 (B12)
        return "key usage is missing"
    return "" if usage.critical else "key usage is not critical"  # X509-SVID §4.3 (B13)


def _key_usage_bits(parts: Parts, want: Expected) -> str:
    usage = parts.key_usage
    if want.kind == "authority":  # X509-SVID §4.3 (B14)
        fits = usage == Extension(True, ext.KEY_CERT_SIGN_CRL_SIGN)
        return "" if fits else "key usage of an authority is not keyCertSign and cRLSign"
    kind = want.key.kind  # X509-SVID §4.3 (B15, B16, B17)
    fits = usage is not None and usage.value == ext.leaf_key_usage(kind)
    return "" if fits else f"key usage is not that of a leaf with an {kind.upper()} key"


_BOTH_PURPOSES = Extension(False, der.tlv(der.SEQUENCE, ext.SERVER_AUTH + ext.CLIENT_AUTH))


def _extended_key_usage(parts: Parts, want: Expected) -> str:
    if want.kind == "authority":
        return "an authority is for no TLS purpose" if parts.extended_key_usage else ""
    fits = parts.extended_key_usage == _BOTH_PURPOSES
    return "" if fits else "extended key usage is not serverAuth and clientAuth"


_CA_TRUE = Extension(True, b"\x30\x03\x01\x01\xff")
_CA_FALSE = Extension(True, b"\x30\x00")


def _basic_constraints(parts: Parts, want: Expected) -> str:
    if want.kind == "authority":  # X509-SVID §4.1 (B9)
        return "" if parts.basic_constraints == _CA_TRUE else "basic constraints are not critical with cA TRUE"
    fits = parts.basic_constraints == _CA_FALSE  # X509-SVID §4.1 (B10)
    return "" if fits else "basic constraints are not critical with cA FALSE"


def _subject_key_id(parts: Parts, want: Expected) -> str:
    fits = parts.subject_key_id == Extension(False, b"\x04\x14" + want.key_identifier)
    return "" if fits else "subject key identifier is not the SHA-1 of the public key's bits"


def _authority_key_id(parts: Parts, want: Expected) -> str:
    if want.issuer.self_signed:
        return "a root names no other authority" if parts.authority_key_id else ""
    expected = Extension(False, der.tlv(der.SEQUENCE, der.tlv(0x80, want.issuer.key_id)))
    return "" if parts.authority_key_id == expected else "authority key identifier is not the issuer's keyid alone"


def _one_uri(parts: Parts, want: Expected) -> str:
    uris = [content for tag, content in parts.names or () if tag == ext.URI]
    if len(uris) != 1:
        return f"there are {len(uris)} URIs instead of one"
    return "" if uris[0] == str(want.spiffe_id).encode() else "URI is not the SPIFFE ID that was decided on"


def _dns_names(parts: Parts, want: Expected) -> str:
    found = tuple(content.decode("ascii", "replace") for tag, content in parts.names or () if tag == ext.DNS_NAME)
    if found != want.dns_names:
        return "DNS names are not those that were decided on"
    for name in found:
        try:
            check_dns_name(name)
        except InvalidArgument as error:
            return error.detail
    return ""


def _only_uri_and_dns(parts: Parts, want: Expected) -> str:
    if all(tag in (ext.URI, ext.DNS_NAME) for tag, _ in parts.names or ()):
        return ""
    return "there is an alternative name that is neither DNS name nor URI"


def _identity(parts: Parts, want: Expected) -> str:
    identity = want.spiffe_id
    if identity.trust_domain != want.issuer.trust_domain:  # SPIFFE-ID §3.1 (A21), X509-SVID §3.2 (B7)
        return "SPIFFE ID is of another trust domain than the issuer's"
    if want.kind == "leaf":  # X509-SVID §3.1 (B3)
        return "" if identity.path else "SPIFFE ID of a leaf has no path"
    return "SPIFFE ID of an authority has a path" if identity.path else ""  # §3.1 (A22), X509-SVID §3.2 (B6)


def _names_critical(parts: Parts, want: Expected) -> str:
    empty = len(parts.subject) <= 2
    return "" if parts.names_critical == empty else "alternative names are critical if and only if the subject is empty"


def _rule(name: str, citation: str, check: Check, reads: str, expects: str = "") -> Rule:
    return Rule(name, citation, frozenset(reads.split()), frozenset(expects.split()), check)


RULES: tuple[Rule, ...] = (
    _rule("version", "RFC 5280 §4.1.2.1", _version, "version"),
    _rule("serial number", "RFC 5280 §4.1.2.2", _serial, "serial", "serial"),
    _rule("signature algorithm", "RFC 5280 §4.1.2.3, RFC 5758 §3.2, RFC 4055 §5", _algorithm, "algorithm", "issuer"),
    _rule("issuer", "RFC 5280 §4.1.2.4", _issuer, "issuer", "issuer"),
    _rule("validity", "RFC 5280 §4.1.2.5", _validity, "validity", "lifetime issuer"),
    _rule("subject", "RFC 5280 §4.1.2.6, appendix A.1", _subject, "subject", "kind subject"),
    _rule("public key", "RFC 5280 §4.1.2.7, SPIFFE-ID §3.2 (A23)", _key, "key", "key"),
    _rule("unique identifiers", "RFC 5280 §4.1.2.8", _no_unique_ids, "unique_ids"),
    _rule("extensions", "RFC 5280 §4.2", _extensions, "oids", "kind"),
    _rule("key usage there", "X509-SVID §4.3 (B12, B13)", _key_usage_there, "key_usage"),
    _rule("key usage bits", "X509-SVID §4.3 (B14-B17), RFC 8813 §3", _key_usage_bits, "key_usage", "key kind"),
    _rule("extended key usage", "X509-SVID §4.4 (B18, B19)", _extended_key_usage, "extended_key_usage", "kind"),
    _rule("basic constraints", "X509-SVID §4.1 (B9, B10)", _basic_constraints, "basic_constraints", "kind"),
    _rule("subject key identifier", "RFC 5280 §4.2.1.2", _subject_key_id, "subject_key_id", "key_identifier"),
    _rule("authority key identifier", "RFC 5280 §4.2.1.1", _authority_key_id, "authority_key_id", "issuer"),
    _rule("one URI", "X509-SVID §2 (B1), SPIFFE-ID §3.1 (A20)", _one_uri, "names", "spiffe_id"),
    _rule("DNS names", "RFC 5280 §4.2.1.6", _dns_names, "names", "dns_names"),
    _rule("name forms", "X509-SVID §2", _only_uri_and_dns, "names"),
    _rule("identity", "X509-SVID §3.1, §3.2 (B3, B6, B7)", _identity, "", "kind issuer spiffe_id"),
    _rule("critical names", "X509-SVID §3.1 (B4), RFC 5280 §4.2.1.6", _names_critical, "names_critical subject"),
)
