"""Keys made once, a root that signs, and cryptography's builder as the second opinion on bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.identity.spiffe_id import TrustDomain
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.lifetime import Lifetime, plan_lifetime
from ca.issuing.spki import PublicKeyInfo, read_public_key
from ca.issuing.x509 import prepare_root, sign
from ca.keys.signer import LocalSigner, generate_private_key
from ca.ports import KeyType

TD = TrustDomain("example.org")
NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
ISSUER_TYPES = (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)
PRINTABLE = _ASN1Type.PrintableString


def signer(key_type: KeyType = KeyType.EC_P256, name: str = "root") -> LocalSigner:
    return _signer(key_type, name)


@cache
def _signer(key_type: KeyType, name: str) -> LocalSigner:
    return LocalSigner(name, generate_private_key(key_type))


def private_key(made: LocalSigner) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    return made._key


def root(key_type: KeyType = KeyType.EC_P256, not_after: datetime = datetime(9999, 12, 31, tzinfo=UTC)) -> bytes:
    """A self-signed root that ends at `not_after`."""
    return _root(key_type, not_after)


@cache
def _root(key_type: KeyType, not_after: datetime) -> bytes:
    seconds = int((not_after - NOW).total_seconds())
    token = prepare_root(
        trust_domain=TD,
        public_key_der=signer(key_type).public_key_der,
        key_type=key_type,
        lifetime=plan_lifetime(NOW, seconds, 0, None),
        serial=0x1234567890ABCDEF1234567890ABCDEF,
    )
    return sign(token, signer(key_type), remote=True)


def issuer(key_type: KeyType = KeyType.EC_P256) -> IssuerTemplate:
    return IssuerTemplate.from_certificate(root(key_type))


def subject_key(kind: str = "ec-p256", number: int = 0) -> PublicKeyInfo:
    return _subject_key(kind, number)


@cache
def _subject_key(kind: str, number: int) -> PublicKeyInfo:
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "ec-p256":
        key = ec.generate_private_key(ec.SECP256R1())
    elif kind == "ec-p384":
        key = ec.generate_private_key(ec.SECP384R1())
    else:
        key = rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("rsa-")))
    return read_public_key(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def lifetime(not_before: datetime, not_after: datetime) -> Lifetime:
    return Lifetime(
        issued_at=not_before, not_before=not_before, not_after=not_after, requested_seconds=1, granted_seconds=1
    )


def svid_name(common_name: str = "") -> x509.Name:
    """C=US, O=SPIRE and perhaps a common name, with the string types that Go chooses."""
    attributes = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIRE", _type=PRINTABLE),
    ]
    if common_name:
        kind = _ASN1Type.UTF8String if set(common_name) & {"_", "*"} else PRINTABLE
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name, _type=kind))
    return x509.Name(attributes)


def authority_name(serial: int) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIFFE", _type=PRINTABLE),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial), _type=PRINTABLE),
        ]
    )


KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in KEY_USAGES})


def builder_leaf(
    *,
    issuer_der: bytes,
    key: PublicKeyInfo,
    serial: int,
    times: Lifetime,
    uri: str,
    dns_names: Sequence[str],
    subject: x509.Name,
) -> x509.CertificateBuilder:
    """What `prepare_leaf` is meant to write, by cryptography's own builder."""
    public_key = load_der_public_key(key.der)
    issuing = x509.load_der_x509_certificate(issuer_der)
    usages = ["digital_signature"] + (["key_encipherment"] if key.kind == "rsa" else [])
    ski = hashlib.sha1(key.der[key.bits_at :]).digest()
    issuer_ski = issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    names.append(x509.UniformResourceIdentifier(uri))
    return (
        x509.CertificateBuilder()
        .serial_number(serial)
        .issuer_name(issuing.subject)
        .subject_name(subject)
        .not_valid_before(times.not_before)
        .not_valid_after(times.not_after)
        .public_key(public_key)
        .add_extension(key_usage(*usages), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(ski), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(issuer_ski, None, None), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def digest_of(key_type: KeyType) -> hashes.HashAlgorithm:
    return hashes.SHA384() if key_type == KeyType.EC_P384 else hashes.SHA256()
