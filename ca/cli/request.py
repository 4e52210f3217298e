"""A key made on this machine, and the signing request that proves its possession."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.errors import InvalidArgument
from ca.ports import KeyType

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_CURVES: dict[KeyType, ec.EllipticCurve] = {KeyType.EC_P256: ec.SECP256R1(), KeyType.EC_P384: ec.SECP384R1()}
_BITS = {KeyType.RSA_2048: 2048, KeyType.RSA_3072: 3072, KeyType.RSA_4096: 4096}


def new_key(key_type: KeyType) -> PrivateKey:
    """A fresh private key."""
    if key_type in _CURVES:
        return ec.generate_private_key(_CURVES[key_type])
    return rsa.generate_private_key(public_exponent=65537, key_size=_BITS[key_type])


def request_der(key: PrivateKey, spiffe_id: str, dns_names: Sequence[str]) -> bytes:
    """A PKCS#10 request with one URI SAN (none for an empty ID) and DNS SANs, DER.

    Raises InvalidArgument for names that no SAN can hold.
    """
    try:
        uris = [x509.UniformResourceIdentifier(spiffe_id)] if spiffe_id else []
        names = [*uris, *map(x509.DNSName, dns_names)]
    except ValueError as error:
        raise InvalidArgument(f"a name is not ASCII: {error}", reason="DNS_NAME") from error
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def private_pem(key: PrivateKey) -> bytes:
    """PKCS#8 PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
