"""What was provisioned for the agent: DevID key and certificates, passwords. Each is read when it is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestor.node.tpm.commands import Made
from attestor.node.tpm.messages import MAX_CERTIFICATES
from attestor.node.tpm.public import PublicArea, parse_public
from attestor.node.tpm.structures import Malformed
from ca.errors import FailedPrecondition
from ca.runtime.files import read_private

MAX_FILE_BYTES = 128 * 1024
MAX_PASSWORD_BYTES = 64
_HINT = "provision the DevID anew, or correct the paths; the page of the plugin shows how"


@dataclass(frozen=True, kw_only=True)
class Passwords:
    """Empty where nobody set one."""

    owner: bytes = field(default=b"", repr=False)
    endorsement: bytes = field(default=b"", repr=False)
    devid: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class DevId:
    """The DevID as it was provisioned: both parts of its key, what the public one says, and the certificates (DER, its
    own first)."""

    key: Made
    area: PublicArea
    chain: tuple[bytes, ...]


def read_devid(public: Path, private: Path, certificate: Path) -> DevId:
    """Raises FailedPrecondition TPM_DEVID_FILES."""
    key = Made(private=_without_length(_read(private)), public=_without_length(_read(public)))
    try:
        area = parse_public(key.public)
    except Malformed as error:
        raise _unusable(public, f"is not the public part of a TPM's key: {error}") from error
    return DevId(key=key, area=area, chain=read_certificates(certificate))


def read_certificates(path: Path) -> tuple[bytes, ...]:
    """DER, from a PEM file or one of a single DER certificate. Raises FailedPrecondition TPM_DEVID_FILES."""
    data = _read(path)
    try:
        found = (
            x509.load_pem_x509_certificates(data) if b"-----BEGIN" in data else [x509.load_der_x509_certificate(data)]
        )
    except ValueError as error:
        raise _unusable(path, "holds no certificate") from error
    if len(found) > MAX_CERTIFICATES:
        raise _unusable(path, f"holds more than {MAX_CERTIFICATES} certificates")
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in found)


def read_password(path: Path | None) -> bytes:
    """Without the line's end. Raises FailedPrecondition TPM_PASSWORD_FILE, or NOT_PRIVATE where others can read it."""
    if path is None:
        return b""
    try:
        password = read_private(path, max_bytes=MAX_PASSWORD_BYTES + 2).removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise FailedPrecondition(f"cannot read `{path}`: {error.strerror}", reason="TPM_PASSWORD_FILE") from error
    if len(password) > MAX_PASSWORD_BYTES:
        raise FailedPrecondition(
            f"the password in `{path}` is longer than {MAX_PASSWORD_BYTES} bytes", reason="TPM_PASSWORD_FILE"
        )
    return password


def _without_length(data: bytes) -> bytes:
    """tpm2-tools write the two bytes of length before the structure, SPIRE's tools do not."""
    return data[2:] if len(data) == 2 + int.from_bytes(data[:2], "big") else data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    if not data or len(data) > MAX_FILE_BYTES:
        raise _unusable(path, "is empty or too long")
    return data


def _unusable(path: Path, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"`{path}` {why}", reason="TPM_DEVID_FILES", hint=_HINT)
