"""Certificates of a test's own authority, with any URI SANs: also what no issuer of ours makes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """Certificate and key, PEM, in files."""

    certificate: Path
    key: Path


class Authority:
    """Signs whatever it is asked to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self._own = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self._made: dict[tuple[str, ...], Pair] = {}
        self.roots = directory / "roots.pem"
        self.roots.write_bytes(self._own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(issuer_name=self._name, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
        )

    def issue(self, *uris: str) -> Pair:
        """A certificate with these URI SANs, made once."""
        if (found := self._made.get(uris)) is not None:
            return found
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([]), key)
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=True)
        pair = Pair(self._directory / f"{len(self._made)}.pem", self._directory / f"{len(self._made)}.key")
        pair.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
        return self._made.setdefault(uris, pair)
