"""Makes certificates and tokens to order, wrong ones included: every knob that a defect needs, and nothing safe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.identity import base64url
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
TD = TrustDomain("example.org")
OTHER = TrustDomain("other.org")
BOTH_PURPOSES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1(), "K-256": ec.SECP256K1()}


@cache
def key(kind: str, name: str = "") -> PrivateKey:
    """One key per kind and name, made once per test run. Kinds: P-256 … P-521, K-256, Ed25519, RSA-<bits>."""
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind.startswith("RSA-"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind[4:]))
    return ec.generate_private_key(_CURVES[kind])


_USAGE_BITS = (
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


def usage(*set_bits: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{bit: bit in set_bits for bit in _USAGE_BITS})


def uri(value: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(value)


def distinguished_name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


@dataclass
class Cert:
    """An order for one certificate; the defaults make a good leaf."""

    subject: str = "workload"
    key: PrivateKey = field(default_factory=lambda: key("P-256", "leaf"))
    san: Sequence[x509.GeneralName] = field(default_factory=lambda: [uri("spiffe://example.org/web")])
    not_before: datetime = NOW - HOUR
    not_after: datetime = NOW + HOUR
    constraints: x509.BasicConstraints | None = field(default_factory=lambda: x509.BasicConstraints(False, None))
    key_usage: x509.KeyUsage | None = field(default_factory=lambda: usage("digital_signature"))
    key_usage_critical: bool = True
    purposes: Sequence[x509.ObjectIdentifier] | None = BOTH_PURPOSES
    extra: Sequence[tuple[x509.ExtensionType, bool]] = ()
    digest: Any = field(default_factory=hashes.SHA256)
    issuer_name: str | None = None
    key_identifiers: bool = True


@dataclass(frozen=True)
class Authority:
    """A CA that signs whatever it is given."""

    subject: str
    key: PrivateKey
    der: bytes

    def sign(self, order: Cert) -> bytes:
        return issue(order, self.subject, self.key)

    def bundle(self, trust_domain: TrustDomain = TD) -> TrustBundle:
        return TrustBundle(trust_domain=trust_domain, x509_authorities=(X509Authority(certificate=self.der),))


def ca_order(subject: str, **changes: Any) -> Cert:
    defaults: dict[str, Any] = {
        "subject": subject,
        "key": key("P-256", subject),
        "san": [uri("spiffe://example.org")],
        "constraints": x509.BasicConstraints(True, None),
        "key_usage": usage("key_cert_sign", "crl_sign"),
        "purposes": None,
        "not_before": NOW - 2 * HOUR,
        "not_after": NOW + 24 * HOUR,
    }
    return Cert(**(defaults | changes))


def root(subject: str = "root", **changes: Any) -> Authority:
    order = ca_order(subject, **changes)
    return Authority(subject, order.key, issue(order, subject, order.key))


def intermediate(parent: Authority, subject: str = "intermediate", **changes: Any) -> Authority:
    order = ca_order(subject, **changes)
    return Authority(subject, order.key, parent.sign(order))


def issue(order: Cert, issuer_subject: str, issuer_key: PrivateKey) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(distinguished_name(order.subject))
        .issuer_name(distinguished_name(order.issuer_name or issuer_subject))
        .not_valid_before(order.not_before)
        .not_valid_after(order.not_after)
        .serial_number(x509.random_serial_number())
        .public_key(order.key.public_key())
    )
    extensions: list[tuple[x509.ExtensionType | None, bool]] = [
        (order.constraints, True),
        (order.key_usage, order.key_usage_critical),
        (x509.ExtendedKeyUsage(order.purposes) if order.purposes is not None else None, False),
        (x509.SubjectAlternativeName(order.san) if order.san else None, False),
        *order.extra,
    ]
    if order.key_identifiers:
        extensions.append((x509.SubjectKeyIdentifier.from_public_key(order.key.public_key()), False))
        extensions.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False))
    for value, critical in extensions:
        if value is not None:
            builder = builder.add_extension(value, critical=critical)
    digest = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else order.digest
    return builder.sign(issuer_key, digest).public_bytes(Encoding.DER)


def spki(private: PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def jwt_bundle(trust_domain: TrustDomain = TD, **keys: PrivateKey) -> TrustBundle:
    """A bundle whose JWT authorities have the keyword names as key ids."""
    return TrustBundle(
        trust_domain=trust_domain,
        jwt_authorities=tuple(JwtAuthority(key_id=name, public_key=spki(k)) for name, k in keys.items()),
    )


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; a value of None takes a claim away."""
    seconds = int(NOW.timestamp())
    good = {"sub": "spiffe://example.org/web", "aud": ["api"], "exp": seconds + 300, "iat": seconds}
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(payload: Any, signer: PrivateKey, *, alg: str = "ES256", header: Mapping[str, Any] | None = None) -> str:
    """A compact JWS. `header` changes the good header; None takes a member away. `payload` may be raw bytes."""
    members = {"alg": alg, "kid": "k", "typ": "JWT"} | dict(header or {})
    head = json.dumps({name: value for name, value in members.items() if value is not None}).encode()
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signing_input = f"{base64url.encode(head)}.{base64url.encode(body)}"
    return f"{signing_input}.{base64url.encode(sign_jws(alg, signer, signing_input.encode()))}"


def sign_jws(alg: str, signer: PrivateKey, data: bytes) -> bytes:
    digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}.get(alg[2:], hashes.SHA256())
    if isinstance(signer, ec.EllipticCurvePrivateKey):
        size = (signer.curve.key_size + 7) // 8
        r, s = decode_dss_signature(signer.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if isinstance(signer, ed25519.Ed25519PrivateKey):
        return signer.sign(data)
    if alg.startswith("PS"):
        return signer.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    return signer.sign(data, padding.PKCS1v15(), digest)
