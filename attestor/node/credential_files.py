"""Certificates and keys in PEM files: a node's own, which it reads at each attestation, and who vouches for nodes."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestor.node.files import read_bounded
from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.bundle_pem import parse_certificates


def read_authorities(paths: tuple[Path, ...]) -> list[bytes]:
    """Raises ValueError."""
    found: list[bytes] = []
    for path in paths:
        try:
            found += parse_certificates(read_bounded(path))
        except (OSError, InvalidArgument) as error:
            why = error.detail if isinstance(error, InvalidArgument) else error.strerror
            raise ValueError(f"cannot read authorities from `{path}`: {why}") from error
    return found


def read_chain(path: Path) -> tuple[bytes, ...]:
    try:
        return parse_certificates(read_bounded(path))
    except (OSError, InvalidArgument) as error:
        raise _no_credential(path, error.detail if isinstance(error, InvalidArgument) else error.strerror) from error


def read_key(path: Path, certificate: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(read_bounded(path), None)
    except OSError as error:
        raise _no_credential(path, error.strerror) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_credential(path, "no unencrypted private key in PEM") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise _no_credential(path, "neither an RSA nor an EC key")
    if key.public_key() != x509.load_der_x509_certificate(certificate).public_key():
        raise _no_credential(path, "not the key of the certificate")
    return key


def _no_credential(path: Path, why: str | None) -> FailedPrecondition:
    return FailedPrecondition(
        f"cannot prove this node with `{path}`: {why}",
        reason="NODE_CREDENTIAL",
        hint="the agent reads it again at the next attempt, without a restart",
    )
