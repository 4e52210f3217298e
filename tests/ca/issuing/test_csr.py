"""Requests: verified before believed, bounded, and read byte for byte."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.issuing import der
from ca.issuing.csr import MAX_CSR_BYTES, parse_csr
from ca.issuing.names import COMMON_NAME, COUNTRY, ORGANIZATION, Attribute

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

NAMES: list[x509.GeneralName] = [
    x509.DNSName("a.example.org"),
    x509.UniformResourceIdentifier("spiffe://example.org/w"),
    x509.IPAddress(ip_address("127.0.0.1")),
    x509.DNSName("b.example.org"),
]


@cache
def key_of(kind: str) -> PrivateKey:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind.startswith("rsa-"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("rsa-")))
    curves: dict[str, ec.EllipticCurve] = {
        "p256": ec.SECP256R1(),
        "p384": ec.SECP384R1(),
        "p521": ec.SECP521R1(),
        "k256": ec.SECP256K1(),
    }
    return ec.generate_private_key(curves[kind])


def spki_of(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def request(
    key: PrivateKey, *, names: list[x509.GeneralName] | None = None, digest: hashes.HashAlgorithm | None = None
) -> bytes:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acmé"),
            x509.NameAttribute(NameOID.COMMON_NAME, "my cn"),
        ]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"secret")
    if digest is None and not isinstance(key, ed25519.Ed25519PrivateKey):
        digest = hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.DER)  # type: ignore[arg-type]  # None for Ed25519


def reason_of(csr: bytes) -> str:
    with pytest.raises(InvalidArgument) as caught:
        parse_csr(csr)
    return caught.value.reason


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("p256", "ec-p256"), ("p384", "ec-p384"), ("rsa-2048", "rsa-2048"), ("rsa-3072", "rsa-3072")],
)
@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_the_key_comes_out_byte_for_byte(kind: str, algorithm: str, digest: hashes.HashAlgorithm) -> None:
    key = key_of(kind)
    csr = parse_csr(request(key, digest=digest))
    assert csr.public_key_der == spki_of(key)
    assert csr.key_algorithm == algorithm
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    assert csr.key.identifier == ski


def test_names_are_what_the_sender_would_like() -> None:
    csr = parse_csr(request(key_of("p256"), names=NAMES))
    assert csr.uri_sans == ("spiffe://example.org/w",)
    assert csr.dns_names == ("a.example.org", "b.example.org")
    assert csr.subject == (Attribute(COUNTRY, "DE"), Attribute(ORGANIZATION, "Acmé"), Attribute(COMMON_NAME, "my cn"))


def test_a_request_without_names_has_none() -> None:
    csr = parse_csr(request(key_of("p256")))
    assert (csr.uri_sans, csr.dns_names) == ((), ())


def test_several_uris_are_all_seen() -> None:
    uris = [x509.UniformResourceIdentifier(f"spiffe://example.org/{n}") for n in range(2)]
    assert len(parse_csr(request(key_of("p256"), names=list(uris))).uri_sans) == 2


@pytest.mark.parametrize("kind", ["p256", "rsa-2048"])
def test_a_broken_signature_is_refused(kind: str) -> None:
    made = bytearray(request(key_of(kind)))
    made[-1] ^= 1
    assert reason_of(bytes(made)) == "CSR_SIGNATURE"


def test_another_key_than_the_signers_is_refused() -> None:
    """The whole point: nobody gets a certificate for a public key that is not theirs."""
    mine, theirs = key_of("p256"), ec.generate_private_key(ec.SECP256R1())
    assert reason_of(request(mine).replace(spki_of(mine), spki_of(theirs))) == "CSR_SIGNATURE"


def test_names_changed_after_signing_are_refused() -> None:
    made = request(key_of("p256"), names=NAMES)
    assert reason_of(made.replace(b"example.org/w", b"example.org/x")) == "CSR_SIGNATURE"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("p521", "KEY_ALGORITHM"), ("k256", "KEY_ALGORITHM"), ("rsa-1024", "KEY_TOO_WEAK")],
)
def test_other_keys_are_refused(kind: str, reason: str) -> None:
    assert reason_of(request(key_of(kind))) == reason


def test_ed25519_is_refused() -> None:
    assert reason_of(request(key_of("ed25519"))) == "CSR_ALGORITHM"


def test_pss_is_refused() -> None:
    key = key_of("rsa-2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    made = builder.sign(key, hashes.SHA256(), rsa_padding=pss).public_bytes(Encoding.DER)
    assert reason_of(made) == "CSR_ALGORITHM"


def hand_made(spki: bytes, algorithm: str = "1.2.840.10045.4.3.2", attributes: bytes = b"\xa0\x00") -> bytes:
    info = der.tlv(0x30, b"\x02\x01\x00" + b"\x30\x00" + spki + attributes)
    identifier = der.tlv(0x30, der.object_identifier(algorithm))
    return der.tlv(0x30, info + identifier + der.tlv(0x03, b"\x00" + b"\x30\x06\x02\x01\x01\x02\x01\x01"))


def test_an_algorithm_that_does_not_fit_the_key_is_refused() -> None:
    assert reason_of(hand_made(spki_of(key_of("rsa-2048")))) == "CSR_SIGNATURE"
    ec_with_rsa = hand_made(spki_of(key_of("p256"))).replace(
        der.tlv(0x30, der.object_identifier("1.2.840.10045.4.3.2")),
        der.tlv(0x30, der.object_identifier("1.2.840.113549.1.1.11") + b"\x05\x00"),
    )
    assert reason_of(ec_with_rsa) == "CSR_MALFORMED"  # lengths no longer fit
    info = der.Reader(der.Reader(hand_made(spki_of(key_of("p256")))).take(0x30)).take_whole(0x30)
    rsa_sha256 = der.tlv(0x30, der.object_identifier("1.2.840.113549.1.1.11") + b"\x05\x00")
    assert reason_of(der.tlv(0x30, info + rsa_sha256 + b"\x03\x02\x00\x01")) == "CSR_SIGNATURE"


def test_a_point_off_its_curve_is_refused() -> None:
    spki = spki_of(key_of("p256"))
    assert reason_of(hand_made(spki[:-64] + bytes(63) + b"\x05")) == "KEY_MALFORMED"


def test_a_compressed_point_is_refused() -> None:
    """One key, one encoding: what is certified has the length and the prefix that everybody expects."""
    key = key_of("p256")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = der.Reader(der.Reader(spki_of(key)).take(0x30)).take_whole(0x30)
    spki = der.tlv(0x30, algorithm + der.tlv(0x03, b"\x00" + point))
    assert reason_of(hand_made(spki)) == "KEY_ALGORITHM"


def rsa_spki(modulus: int, exponent: int) -> bytes:
    numbers = der.tlv(0x30, der.integer(modulus) + der.integer(exponent))
    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    return der.tlv(0x30, algorithm + der.tlv(0x03, b"\x00" + numbers))


@pytest.mark.parametrize(
    ("spki", "reason"),
    [
        (rsa_spki(2**2047 + 1, 3), "KEY_TOO_WEAK"),
        (rsa_spki(2**2047 + 1, 65538), "KEY_TOO_WEAK"),
        (rsa_spki(2**2046 + 1, 65537), "KEY_TOO_WEAK"),
        (rsa_spki(2**8192 + 1, 65537), "KEY_TOO_BIG"),
        (rsa_spki(2**2047 + 1, 2**31 + 1), "KEY_TOO_BIG"),  # Go refuses it
        (rsa_spki(2**3071 + 1, 2**3070 + 1), "KEY_TOO_BIG"),  # a hundred times the work
        (rsa_spki(2**2047 + 1, 2**31 - 1), "CSR_SIGNATURE"),
        (rsa_spki(2**2047 + 1, 65537)[:-1] + b"\x00\x00", "CSR_MALFORMED"),
        (der.tlv(0x30, bytes.fromhex("300d06092a864886f70d0101010500") + b"\x03\x01\x01"), "KEY_MALFORMED"),
        (der.tlv(0x30, b""), "KEY_MALFORMED"),
    ],
)
def test_weak_and_malformed_keys_are_refused(spki: bytes, reason: str) -> None:
    assert reason_of(hand_made(spki)) == reason


def test_too_long_is_refused_before_parsing() -> None:
    assert reason_of(bytes(MAX_CSR_BYTES + 1)) == "CSR_TOO_LONG"
    assert reason_of(bytes(MAX_CSR_BYTES)) == "CSR_MALFORMED"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda csr: b"",
        lambda csr: csr + b"\x00",
        lambda csr: csr[:-1],
        lambda csr: csr.replace(b"\x02\x01\x00\x30", b"\x02\x01\x01\x30", 1),
        lambda csr: b"-----BEGIN CERTIFICATE REQUEST-----",
    ],
)
def test_malformed_requests_are_refused(spoil: object) -> None:
    assert callable(spoil)
    assert reason_of(spoil(request(key_of("p256")))) == "CSR_MALFORMED"


def signed(attributes: bytes, subject: bytes = b"\x30\x00") -> bytes:
    """A properly signed request with these attributes, however odd they are."""
    key = key_of("p256")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    info = der.tlv(0x30, b"\x02\x01\x00" + subject + spki_of(key) + der.tlv(0xA0, attributes))
    signature = key.sign(info, ec.ECDSA(hashes.SHA256()))
    algorithm = der.tlv(0x30, der.object_identifier("1.2.840.10045.4.3.2"))
    return der.tlv(0x30, info + algorithm + der.tlv(0x03, b"\x00" + signature))


def asking(san: bytes, *, extensions: int = 1, attributes: int = 1) -> bytes:
    extension = der.tlv(0x30, der.object_identifier("2.5.29.17") + der.tlv(0x04, san))
    oid = der.object_identifier("1.2.840.113549.1.9.14")
    return signed(der.tlv(0x30, oid + der.tlv(0x31, der.tlv(0x30, extension * extensions))) * attributes)


A_NAME = der.tlv(0x30, der.tlv(0x86, b"spiffe://example.org/w"))


def test_names_asked_for_once_are_read() -> None:
    assert parse_csr(asking(A_NAME)).uri_sans == ("spiffe://example.org/w",)


@pytest.mark.parametrize(
    "csr",
    [
        signed(b"\x30\x01"),
        signed(b"\x31\x00"),
        asking(b""),
        asking(b"\x30\x03\x86\x02a"),
        asking(der.tlv(0x30, der.tlv(0x86, "spiffe://exämple.org".encode()))),
        asking(A_NAME, extensions=2),
        asking(A_NAME, attributes=2),
    ],
)
def test_odd_attributes_are_refused_when_names_are_asked_for(csr: bytes) -> None:
    parsed = parse_csr(csr)
    for ask in (lambda: parsed.uri_sans, lambda: parsed.dns_names):
        with pytest.raises(InvalidArgument) as caught:
            ask()
        assert caught.value.reason == "CSR_MALFORMED"


@pytest.mark.parametrize("string", [der.tlv(0x02, b"\x01"), der.tlv(0x13, b"\xff"), b""])
def test_an_odd_subject_is_refused_when_it_is_asked_for(string: bytes) -> None:
    name = der.tlv(0x30, der.tlv(0x31, der.tlv(0x30, COMMON_NAME + string)))
    with pytest.raises(InvalidArgument) as caught:
        _ = parse_csr(signed(b"", name)).subject
    assert caught.value.reason == "CSR_MALFORMED"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.builds(lambda tail: b"\x30\x80" + tail, st.binary(max_size=64)))
def test_garbage_never_escapes_the_error_family(garbage: bytes) -> None:
    assert reason_of(garbage) == "CSR_MALFORMED"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_always_refused(at: int, flip: int) -> None:
    made = bytearray(request(key_of("p256"), names=NAMES))
    made[at % len(made)] ^= flip
    assert reason_of(bytes(made)).startswith(("CSR_", "KEY_"))
