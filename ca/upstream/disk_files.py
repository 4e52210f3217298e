"""The files of the disk upstream: read whole, and refused unless they belong together."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ca.errors import FailedPrecondition, InvalidArgument, Unavailable
from ca.identity.bundle_pem import parse_certificates
from ca.identity.certificate import is_issued_by, load_authority
from ca.runtime.files import read_private
from ca.upstream.chain import arrange

MAX_FILE_BYTES = 1 << 20

Digest = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

CURVES: dict[str, Digest] = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
"""Curves of keys that may sign, with their digests."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAuthority:
    """What the files hold. `above` follows what it signs, up to the root and without it: it begins with the authority
    itself unless that is a root. `not_after` is the first end of all of it, the root's included."""

    certificate: x509.Certificate
    key: PrivateKey
    above: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    not_after: datetime

    @property
    def digest(self) -> Digest:
        """What its key signs with."""
        return CURVES[self.key.curve.name] if isinstance(self.key, ec.EllipticCurvePrivateKey) else hashes.SHA256()


def load_files(certificate_file: Path, key_file: Path, chain_file: Path | None) -> FileAuthority:
    """Blocks. Raises Unavailable (UPSTREAM_FILE) for a file that cannot be read, FailedPrecondition for its content."""
    own = _certificates(certificate_file)
    others = _certificates(chain_file) if chain_file is not None else ()
    key = _key(key_file)
    certificate = load_authority(own[0])
    if key.public_key() != certificate.public_key():
        raise FailedPrecondition(
            f"`{key_file}` is not the key of `{certificate_file}`",
            reason="UPSTREAM_KEY_MISMATCH",
            hint="replace both; in between the server goes on with the authority that it has",
        )
    between, roots = arrange(own[0], (*own[1:], *others))
    above = () if own[0] in roots else (own[0], *between)
    ends = [load_authority(der).not_valid_after_utc for der in above]
    return FileAuthority(
        certificate=certificate,
        key=key,
        above=above,
        roots=roots,
        not_after=min([*ends, _root_end(above[-1] if above else own[0], roots, certificate_file)]),
    )


def _root_end(top: bytes, roots: tuple[bytes, ...], certificate_file: Path) -> datetime:
    """When the last of the roots that signed the top of the chain ends."""
    ends = [load_authority(root).not_valid_after_utc for root in roots if is_issued_by(top, root)]
    if not ends:
        raise FailedPrecondition(
            f"the root of `{certificate_file}`, or a certificate between, is missing",
            reason="UPSTREAM_ROOT_MISSING",
            hint="name a chain_file with the intermediates and the root",
        )
    return max(ends)


def _certificates(path: Path) -> tuple[bytes, ...]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(text) > MAX_FILE_BYTES:
        raise FailedPrecondition(f"`{path}` is larger than {MAX_FILE_BYTES} bytes", reason="FILE_TOO_LARGE")
    try:
        found = parse_certificates(text)
        for der in found:
            load_authority(der)
    except InvalidArgument as error:
        raise FailedPrecondition(f"`{path}`: {error.detail}", reason="UPSTREAM_CHAIN_MALFORMED") from error
    return found


def _key(path: Path) -> PrivateKey:
    try:
        pem = read_private(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FailedPrecondition(
                f"`{path}` is a symbolic link", reason="NOT_PRIVATE", hint="put the key file itself there"
            ) from error
        raise _unreadable(path, error) from error
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path) from error
    if isinstance(key, rsa.RSAPrivateKey) or (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES):
        return key
    raise _no_key(path)


def _unreadable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(f"`{path}` cannot be read: {error.strerror}", reason="UPSTREAM_FILE")


def _no_key(path: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"`{path}` holds no private key that signs certificates",
        reason="KEY_FILE_CORRUPT",
        hint="an unencrypted EC or RSA key in PEM is needed",
    )
