"""Roots, intermediates and downstream authorities: their bytes, their rules, and OpenSSL's opinion."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import NameOID

from ca.errors import Internal, InvalidArgument
from ca.identity.spiffe_id import SpiffeId
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.profile import WORKLOAD
from ca.issuing.x509 import prepare_downstream, prepare_intermediate, prepare_leaf, prepare_root, sign
from ca.ports import KeyType
from tests.ca.issuing.support import (
    ISSUER_TYPES,
    NOW,
    PRINTABLE,
    TD,
    authority_name,
    digest_of,
    key_usage,
    private_key,
    root,
    signer,
    subject_key,
)

DATA = Path(__file__).parent / "data"
LIFE = plan_lifetime(NOW, 86400, 0, None)


def oracle(public_key_der: bytes, subject: x509.Name, serial: int, parent: bytes | None) -> x509.CertificateBuilder:
    key = load_der_public_key(public_key_der)
    ski = x509.SubjectKeyIdentifier.from_public_key(key)
    builder = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .issuer_name(x509.load_der_x509_certificate(parent).subject if parent else subject)
        .subject_name(subject)
        .not_valid_before(LIFE.not_before)
        .not_valid_after(LIFE.not_after)
        .public_key(key)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(ski, critical=False)
    )
    if parent:
        parent_ski = x509.load_der_x509_certificate(parent).extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
        aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(parent_ski.value)
        builder = builder.add_extension(aki, critical=False)
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://example.org")])
    return builder.add_extension(san, critical=False)


@pytest.mark.parametrize("key_type", [*ISSUER_TYPES, KeyType.RSA_3072])
@pytest.mark.parametrize("serial", [1, 2**64, 2**127, 2**128 - 1])
def test_a_root_is_byte_for_byte_the_builders(key_type: KeyType, serial: int) -> None:
    made = signer(key_type)
    token = prepare_root(
        trust_domain=TD, public_key_der=made.public_key_der, key_type=key_type, lifetime=LIFE, serial=serial
    )
    expected = oracle(made.public_key_der, authority_name(serial), serial, None)
    signed = expected.sign(private_key(made), digest_of(key_type))
    assert token.tbs == signed.tbs_certificate_bytes
    assert token.authority_id == hashlib.sha1(token.want.key.der[token.want.key.bits_at :]).hexdigest()
    assert x509.load_der_x509_certificate(sign(token, made, remote=True)).serial_number == serial


@pytest.mark.parametrize("issuer_type", ISSUER_TYPES)
@pytest.mark.parametrize("key", [("ec-p256", 0), ("ec-p384", 0), ("rsa-2048", 0)])
def test_an_intermediate_is_byte_for_byte_the_builders(issuer_type: KeyType, key: tuple[str, int]) -> None:
    public = subject_key(*key)
    parent = root(issuer_type)
    token = prepare_intermediate(
        public_key_der=public.der, lifetime=LIFE, serial=99, issuer=IssuerTemplate.from_certificate(parent)
    )
    expected = oracle(public.der, authority_name(99), 99, parent)
    made = expected.sign(private_key(signer(issuer_type)), digest_of(issuer_type))
    assert token.tbs == made.tbs_certificate_bytes


def test_a_downstream_authority_is_named_as_spires() -> None:
    parent = root()
    token = prepare_downstream(
        public_key_der=subject_key().der,
        lifetime=LIFE,
        serial=99,
        issuer=IssuerTemplate.from_certificate(parent),
        chain_length=1,
    )
    attributes = list(x509.load_der_x509_certificate(parent).subject)
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "DOWNSTREAM-1", _type=PRINTABLE)
    subject = x509.Name([*attributes[:2], unit, attributes[2]])
    made = oracle(subject_key().der, subject, 99, parent).sign(private_key(signer()), digest_of(KeyType.EC_P256))
    assert token.tbs == made.tbs_certificate_bytes


def test_an_authority_may_not_outlive_its_issuer() -> None:
    short = IssuerTemplate.from_certificate(root(not_after=NOW + timedelta(hours=1)))
    with pytest.raises(Internal, match="outlive") as caught:
        prepare_intermediate(public_key_der=subject_key().der, lifetime=LIFE, serial=99, issuer=short)
    assert caught.value.reason == "LINT"


def test_a_root_made_by_spire_can_be_an_issuer() -> None:
    """The file was written by a SPIRE 1.16 server: its own bytes, as `bundle show` prints them."""
    certificate = x509.load_pem_x509_certificate((DATA / "spire-root.pem").read_bytes())
    found = IssuerTemplate.from_certificate(certificate.public_bytes(Encoding.DER))
    assert str(found.trust_domain) == "example.org"
    assert found.name == certificate.subject.public_bytes()
    assert found.not_after == certificate.not_valid_after_utc
    assert found.key_type == KeyType.EC_P256


def leaf_of(parent: bytes, path: str = "/w") -> bytes:
    token = prepare_leaf(
        profile=WORKLOAD,
        spiffe_id=SpiffeId.of(TD, path),
        dns_names=("a.example.org",),
        public_key=subject_key(),
        lifetime=LIFE,
        serial=3,
        issuer=IssuerTemplate.from_certificate(parent),
    )
    return sign(token, signer(), remote=True)


def test_a_leaf_cannot_be_an_issuer() -> None:
    with pytest.raises(InvalidArgument, match="no CA") as caught:
        IssuerTemplate.from_certificate(leaf_of(root()))
    assert caught.value.reason == "ISSUER_REFUSED"


def foreign_authority(*, uri: str | None, ca: bool = True, usages: tuple[str, ...] = ("key_cert_sign",)) -> bytes:
    """A self-signed certificate by cryptography's builder, right or wrong as asked."""
    made = signer()
    key = load_der_public_key(made.public_key_der)
    builder = (
        x509.CertificateBuilder()
        .serial_number(1)
        .issuer_name(authority_name(1))
        .subject_name(authority_name(1))
        .not_valid_before(LIFE.not_before)
        .not_valid_after(LIFE.not_after)
        .public_key(key)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(key_usage(*usages), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if uri is not None:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(san, critical=False)
    return builder.sign(private_key(made), digest_of(KeyType.EC_P256)).public_bytes(Encoding.DER)


def test_an_upstream_authority_of_another_shape_can_issue() -> None:
    found = IssuerTemplate.from_certificate(foreign_authority(uri="spiffe://example.org"))
    assert found.trust_domain == TD


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (foreign_authority(uri=None), "ISSUER_REFUSED"),
        (foreign_authority(uri="spiffe://example.org/path"), "ISSUER_REFUSED"),
        (foreign_authority(uri="spiffe://example.org", ca=False), "ISSUER_REFUSED"),
        (foreign_authority(uri="spiffe://example.org", usages=("crl_sign",)), "ISSUER_REFUSED"),
        (foreign_authority(uri="https://example.org"), "ISSUER_MALFORMED"),
        (b"", "ISSUER_MALFORMED"),
        (b"\x30\x00", "ISSUER_MALFORMED"),
        (bytes(70_000), "ISSUER_MALFORMED"),
    ],
)
def test_other_certificates_cannot(certificate: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        IssuerTemplate.from_certificate(certificate)
    assert caught.value.reason == reason


def test_a_signing_certificate_without_a_key_identifier_is_refused() -> None:
    certificate = foreign_authority(uri="spiffe://example.org")
    other_oid = certificate.replace(bytes.fromhex("0603551d0e"), bytes.fromhex("0603551d0f").replace(b"\x0f", b"\x63"))
    with pytest.raises(InvalidArgument, match="subject key identifier"):
        IssuerTemplate.from_certificate(other_oid)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
@pytest.mark.parametrize("leaf_path", ["/w", "/" + "x" * 2027])
def test_openssl_verifies_the_chain(tmp_path: Path, leaf_path: str) -> None:
    intermediate_key = signer(name="intermediate")
    token = prepare_intermediate(
        public_key_der=intermediate_key.public_key_der,
        lifetime=LIFE,
        serial=17,
        issuer=IssuerTemplate.from_certificate(root()),
    )
    intermediate = sign(token, signer(), remote=True)
    leaf = sign(
        prepare_leaf(
            profile=WORKLOAD,
            spiffe_id=SpiffeId.of(TD, leaf_path),
            dns_names=(),
            public_key=subject_key(),
            lifetime=LIFE,
            serial=18,
            issuer=IssuerTemplate.from_certificate(intermediate),
        ),
        intermediate_key,
        remote=True,
    )
    for name, certificate in (("root", root()), ("intermediate", intermediate), ("leaf", leaf)):
        pem = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslserver", "-attime"]
    files = ["-CAfile", "root.pem", "-untrusted", "intermediate.pem", "leaf.pem"]
    when = str(int(NOW.timestamp()))
    done = subprocess.run([*command, when, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "leaf.pem: OK\n", done.stderr
