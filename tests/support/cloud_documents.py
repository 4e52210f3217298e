"""Keys, certificates and documents as the big clouds make them: signed by test-time authorities of our own."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from ca.identity import base64url
from tests.support.real import require

ACCOUNT, REGION, INSTANCE = "123456789012", "eu-central-1", "i-0123456789abcdef0"
PROJECT, GCP_INSTANCE = "project-1", "1234567890123456789"
TENANT_DOMAIN = "example.onmicrosoft.com"
TENANT = "11111111-2222-3333-4444-555555555555"
SUBSCRIPTION = "d5b40d61-272e-48da-beb9-05f295c42bd6"
VM = "02aab8a4-74ef-476e-8182-f6d2ba4166a6"

CertificateChain = tuple[x509.Certificate, ...]


@dataclass(frozen=True, kw_only=True)
class Signer:
    """A key with its certificate; `chain` is what stands between it and the root."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    chain: CertificateChain = ()

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def _key(name: str, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key for one name: they take long to make."""
    return _key(name, bits)


@cache
def self_signed(name: str, bits: int = 2048) -> Signer:
    """As Amazon's: one for a region, and no authority above it."""
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    made = _certificate(subject, subject, key(name, bits), key(name, bits))
    return Signer(key=key(name, bits), certificate=made)


@cache
def azure_root(name: str = "root") -> Signer:
    subject = _common_name(f"azure {name}")
    made = _certificate(subject, subject, key(subject.rfc4514_string()), key(subject.rfc4514_string()), ca=True)
    return Signer(key=key(subject.rfc4514_string()), certificate=made)


@cache
def azure_signer(
    *,
    dns: str = "metadata.azure.com",
    root: str = "root",
    issuer_address: str = "",
    begins: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(days=30),
) -> Signer:
    """Below a root and one certificate between, as Azure's."""
    above = azure_root(root)
    between_key, leaf_key = key(f"between {root}"), key("azure leaf")
    name = _common_name(f"Azure issuing CA of {root}")
    between = _certificate(name, above.certificate.subject, between_key, above.key, ca=True)
    leaf = _certificate(
        _common_name(dns), name, leaf_key, between_key, dns=dns, issuer_address=issuer_address, begins=begins, ends=ends
    )
    return Signer(key=leaf_key, certificate=leaf, chain=(between,))


def signed_message(
    content: bytes, signer: Signer, *, attributes: bool = True, certificates: bool = True, detached: bool = False
) -> bytes:
    """PKCS #7, DER."""
    options = [pkcs7.PKCS7Options.Binary]
    options += [] if attributes else [pkcs7.PKCS7Options.NoAttributes]
    options += [] if certificates else [pkcs7.PKCS7Options.NoCerts]
    options += [pkcs7.PKCS7Options.DetachedSignature] if detached else []
    builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
    builder = builder.add_signer(signer.certificate, signer.key, hashes.SHA256())
    return builder.sign(Encoding.DER, options)


def openssl_message(content: bytes, signer: Signer, *options: str, command: str = "cms") -> bytes:
    """PKCS #7 by the real openssl; `-stream` makes indefinite lengths, as Amazon's messages have."""
    require("openssl", shutil.which("openssl") is not None, "apt-get install openssl")
    with TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "signer.pem").write_bytes(signer.pem)
        (home / "key.pem").write_bytes(signer.key_pem)
        (home / "content").write_bytes(content)
        arguments = ["-in", "content", "-signer", "signer.pem", "-inkey", "key.pem", "-outform", "DER", "-out", "out"]
        done = subprocess.run(
            ["openssl", command, "-sign", "-binary", *arguments, *options], cwd=home, capture_output=True, timeout=30
        )
        assert done.returncode == 0, done.stderr.decode()
        return (home / "out").read_bytes()


# Amazon


def aws_document(**changes: Any) -> bytes:
    document = {
        "accountId": ACCOUNT,
        "architecture": "x86_64",
        "availabilityZone": REGION + "a",
        "billingProducts": None,
        "imageId": "ami-0123456789abcdef0",
        "instanceId": INSTANCE,
        "instanceType": "t3.micro",
        "pendingTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "privateIp": "10.0.0.1",
        "region": REGION,
        "version": "2017-09-30",
    }
    return json.dumps(document | changes, indent=2).encode()


def aws_payload(content: bytes, message: bytes | None, signature: bytes = b"") -> bytes:
    """What an agent sends; the metadata service wraps its base64."""
    return json.dumps(
        {
            "document": content.decode(),
            "signature": base64.encodebytes(signature).decode(),
            "rsa2048": "" if message is None else base64.encodebytes(message).decode(),
        }
    ).encode()


def aws_evidence(signer: Signer | None = None, **changes: Any) -> bytes:
    content = aws_document(**changes)
    return aws_payload(content, signed_message(content, signer or self_signed(REGION), certificates=False))


# Google


def gcp_claims(now: datetime | None = None, **changes: Any) -> dict[str, Any]:
    """The claims of a token of full format; `compute_engine` changes those within."""
    at = int((now or datetime.now(UTC)).timestamp())
    engine = {
        "instance_creation_timestamp": 1_600_000_000,
        "instance_id": GCP_INSTANCE,
        "instance_name": "node-1",
        "project_id": PROJECT,
        "project_number": 739419398126,
        "zone": "us-west1-b",
    }
    claims = {
        "aud": "spire-gcp-node-attestor",
        "azp": "107517467455664443765",
        "email": "739419398126-compute@developer.gserviceaccount.com",
        "email_verified": True,
        "exp": at + 3600,
        "google": {"compute_engine": engine | changes.pop("compute_engine", {})},
        "iat": at,
        "iss": "https://accounts.google.com",
        "sub": "107517467455664443765",
    }
    return claims | changes


def gcp_token(claims: dict[str, Any], *, signer: str = "google", kid: str = "google-1", alg: str = "RS256") -> bytes:
    head = base64url.encode(json.dumps({"alg": alg, "kid": kid, "typ": "JWT"}).encode())
    signing_input = f"{head}.{base64url.encode(json.dumps(claims).encode())}".encode()
    signature = key(signer).sign(signing_input, padding.PKCS1v15(), hashes.SHA256())
    return signing_input + b"." + base64url.encode(signature).encode()


def gcp_key_set(*names: str) -> dict[str, Any]:
    def jwk(name: str) -> dict[str, str]:
        numbers = key(name).public_key().public_numbers()
        modulus, exponent = (n.to_bytes((n.bit_length() + 7) // 8, "big") for n in (numbers.n, numbers.e))
        values = {"n": base64url.encode(modulus), "e": base64url.encode(exponent)}
        return {"kty": "RSA", "kid": f"{name}-1", "use": "sig", "alg": "RS256", **values}

    return {"keys": [jwk(name) for name in names or ("google",)]}


# Azure


def azure_document(nonce: str, /, now: datetime | None = None, **changes: Any) -> bytes:
    at = now or datetime.now(UTC)
    stamps = {"createdOn": at, "expiresOn": at + timedelta(hours=6)}
    document = {
        "licenseType": "",
        "nonce": nonce,
        "plan": {"name": "", "product": "", "publisher": ""},
        "sku": "22_04-lts",
        "subscriptionId": SUBSCRIPTION,
        "timeStamp": {name: time.strftime("%m/%d/%y %H:%M:%S -0000") for name, time in stamps.items()},
        "vmId": VM,
    }
    return json.dumps(document | changes).encode()


def azure_message(content: bytes, signer: Signer) -> bytes:
    """As Azure's: no attributes, and the algorithm of the signature named as that of the digest."""
    message = signed_message(content, signer, attributes=False)
    digest, signature = bytes.fromhex("0609608648016503040201"), bytes.fromhex("06092a864886f70d01010b")
    assert message.count(digest) == 2  # of the message, and of its signer
    return message.replace(digest, signature)


def azure_answer(message: bytes, *, domain: str = TENANT_DOMAIN, scale_set: str | None = None) -> bytes:
    document = {"encoding": "pkcs7", "signature": base64.b64encode(message).decode()}
    return json.dumps({"document": document, "metadata": {"agentDomain": domain, "vmssName": scale_set}}).encode()


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    own: rsa.RSAPrivateKey,
    above: rsa.RSAPrivateKey,
    *,
    ca: bool = False,
    dns: str = "",
    issuer_address: str = "",
    begins: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(days=30),
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key()), critical=False)
        .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True)
    )
    for extension in _leaf_extensions(dns, issuer_address):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(above, hashes.SHA256())


def _leaf_extensions(dns: str, issuer_address: str) -> Sequence[x509.ExtensionType]:
    if not dns:
        return ()
    found: list[x509.ExtensionType] = [
        x509.SubjectAlternativeName([x509.DNSName(dns)]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ]
    if issuer_address:
        location = x509.UniformResourceIdentifier(issuer_address)
        access = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, location)
        found.append(x509.AuthorityInformationAccess([access]))
    return found


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
