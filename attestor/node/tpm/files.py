"""What was provisioned for the agent: DevID key and certificates, passwords. Each is read when it is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from attestor.node.files import read_bounded
from attestor.node.tpm.commands import Made
from attestor.node.tpm.messages import MAX_CERTIFICATES
from attestor.node.tpm.public import PublicArea, parse_public
from attestor.node.tpm.structures import Malformed
from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.bundle_pem import parse_certificates
from ca.runtime.files import read_private

MAX_PASSWORD_BYTES = 64


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
    """Raises FailedPrecondition NODE_CREDENTIAL."""
    key = Made(private=_without_length(_read(private)), public=_without_length(_read(public)))
    try:
        area = parse_public(key.public)
    except Malformed as error:
        raise unusable(public, f"is not the public part of a TPM's key: {error}") from error
    chain = read_certificates(certificate)
    if len(chain) > MAX_CERTIFICATES:
        raise unusable(certificate, f"holds more than {MAX_CERTIFICATES} certificates")
    return DevId(key=key, area=area, chain=chain)


def read_certificates(path: Path) -> tuple[bytes, ...]:
    """DER, from a PEM file. Raises FailedPrecondition NODE_CREDENTIAL."""
    try:
        return parse_certificates(_read(path))
    except InvalidArgument as error:
        raise unusable(path, f"holds no certificates in PEM: {error.detail}") from error


def read_password(path: Path | None) -> bytes:
    """Without the line's end. Raises FailedPrecondition NODE_CREDENTIAL, or NOT_PRIVATE where others can read it."""
    if path is None:
        return b""
    try:
        password = read_private(path).removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise unusable(path, f"cannot be read: {error.strerror}") from error
    if len(password) > MAX_PASSWORD_BYTES:
        raise unusable(path, f"is a password of more than {MAX_PASSWORD_BYTES} bytes")
    return password


def unusable(path: Path, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"`{path}` {why}", reason="NODE_CREDENTIAL", hint="see how a DevID is provisioned, on the plugin's page"
    )


def _without_length(data: bytes) -> bytes:
    """tpm2-tools write the two bytes of length before the structure, SPIRE's tools do not."""
    return data[2:] if len(data) == 2 + int.from_bytes(data[:2], "big") else data


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path)
    except (OSError, InvalidArgument) as error:
        raise unusable(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
