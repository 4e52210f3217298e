"""The two authorities behind a TPM: a manufacturer's, for endorsement keys, and an owner's, for DevIDs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")
_TPM_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
_USAGES = ("digital_signature", "key_encipherment", "key_cert_sign", "crl_sign")


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class DeviceCa:
    """A root, or below `parent` an intermediate CA."""

    def __init__(self, common_name: str, parent: DeviceCa | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name(common_name)
        signer, issuer = (parent.key, parent.name) if parent else (self.key, self.name)
        builder = _builder(self.name, issuer, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        self.certificate = builder.sign(signer, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pem)
        return path

    def devid(self, key: Any, common_name: str = "device-42", **changes: Any) -> x509.Certificate:
        """An LDevID's certificate. `changes`: see `_leaf`."""
        return self._leaf(key, name(common_name), usages=("digital_signature",), **changes)

    def endorsement(self, key: Any, **changes: Any) -> x509.Certificate:
        """As the TCG's profile has them: no subject, who made it as a directory name in a critical SAN."""
        maker = x509.Name([x509.NameAttribute(_TPM_MANUFACTURER, "id:00001014")])
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.SubjectAlternativeName([x509.DirectoryName(maker)]), True),
            (x509.ExtendedKeyUsage([EK_CERTIFICATE]), False),
        ]
        changes.setdefault("extensions", extensions)
        return self._leaf(key, x509.Name([]), usages=("key_encipherment",), **changes)

    def _leaf(
        self,
        key: Any,
        subject: x509.Name,
        *,
        usages: tuple[str, ...],
        extensions: list[tuple[x509.ExtensionType, bool]] | None = None,
        ca: bool = False,
        days: tuple[int, int] = (-1, 30),
    ) -> x509.Certificate:
        builder = _builder(subject, self.name, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(_usage(*usages), critical=True)
        for extension, critical in extensions or []:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, days: tuple[int, int] = (-1, 30)) -> Any:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )


def _usage(*wanted: str) -> x509.KeyUsage:
    flags = {usage: usage in wanted for usage in _USAGES}
    return x509.KeyUsage(
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
        **flags,
    )
