"""An ordinary certificate authority for tests: certificates with host names or addresses, as the Web has them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A certificate, its key and who made it, all PEM."""

    pem: bytes
    key_pem: bytes
    issuer_pem: bytes

    def write(self, certificate: Path, key: Path) -> None:
        certificate.write_bytes(self.pem)
        key.write_bytes(self.key_pem)
        key.chmod(0o600)


class TlsCa:
    """Makes a key and a root when it is made; `pem` is the root."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"{name} test CA")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _builder(self._name, self._name, self._key, timedelta(days=30))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage, critical=True)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def server(self, host: str, *, lifetime: timedelta = timedelta(days=1)) -> Certified:
        """For a host name or an IP address."""
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        return self._leaf(host, [name], ExtendedKeyUsageOID.SERVER_AUTH, lifetime)

    def client(self, name: str, *groups: str) -> Certified:
        """For somebody who connects; Kubernetes reads groups from the organizations of the subject."""
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        return self._leaf(name, names, ExtendedKeyUsageOID.CLIENT_AUTH, timedelta(days=1), groups)

    def _leaf(
        self,
        name: str,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        lifetime: timedelta,
        organizations: Sequence[str] = (),
    ) -> Certified:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name, *organizations), self._name, key, lifetime)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return Certified(
            pem=builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            issuer_pem=self.pem,
        )


def _name(text: str, *organizations: str) -> x509.Name:
    above = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations]
    return x509.Name([*above, x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + lifetime)
    )
