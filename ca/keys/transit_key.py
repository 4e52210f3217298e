"""What Transit says about a key, read and judged before anything is signed with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from ca.errors import FailedPrecondition, Unavailable
from ca.ports import KeyType

TYPES = {
    KeyType.EC_P256: "ecdsa-p256",
    KeyType.EC_P384: "ecdsa-p384",
    KeyType.RSA_2048: "rsa-2048",
    KeyType.RSA_3072: "rsa-3072",
    KeyType.RSA_4096: "rsa-4096",
}
"""Our key types in Transit's words."""

VERSION = 1
"""The version that `generate` made, and with it the authority. Somebody may rotate the key at Vault; what an authority
signs with is in its certificate and stays."""

_BY_NAME = {name: key_type for key_type, name in TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitKey:
    """A key that may be signed with. `public_key_der` is SubjectPublicKeyInfo of its version `VERSION`."""

    name: str
    key_type: KeyType
    public_key_der: bytes


def read_transit_key(name: str, data: Mapping[str, Any]) -> TransitKey:
    """From the answer to a read of the key.

    Raises FailedPrecondition for a key that we must not or cannot sign with: KEY_TYPE, VAULT_KEY_EXPORTABLE,
    VAULT_KEY_VERSION (the version that made the authority is gone or forbidden); Unavailable (VAULT_ANSWER).
    """
    key_type = _BY_NAME.get(str(data.get("type")))
    if key_type is None:
        raise FailedPrecondition(
            f"the key `{name}` in vault is of no type that is signed with",
            reason="KEY_TYPE",
            hint=f"known are {', '.join(f'`{one}`' for one in _BY_NAME)}",
        )
    if data.get("exportable") is not False or data.get("allow_plaintext_backup") is not False:
        raise FailedPrecondition(
            f"vault may hand out the key `{name}`",
            reason="VAULT_KEY_EXPORTABLE",
            hint="who may read it from vault can be this authority: prepare another one, then delete this key",
        )
    _check_version(name, data)
    return TransitKey(name=name, key_type=key_type, public_key_der=_public_key(name, key_type, data))


def read_creation_time(data: Mapping[str, Any]) -> datetime | None:
    """Of the version `VERSION`, from the answer to a read of the key."""
    versions = data.get("keys")
    version = versions.get(str(VERSION)) if isinstance(versions, Mapping) else None
    try:
        made = datetime.fromisoformat(str(version["creation_time"])) if isinstance(version, Mapping) else None
    except (KeyError, ValueError):
        return None
    return made if made is not None and made.tzinfo is not None else None


def _check_version(name: str, data: Mapping[str, Any]) -> None:
    versions = data.get("keys")
    gone = not isinstance(versions, Mapping) or str(VERSION) not in versions
    if gone or data.get("soft_deleted") or _number(data.get("min_encryption_version")) > VERSION:
        raise FailedPrecondition(
            f"vault does not sign with version {VERSION} of the key `{name}`, which made the authority",
            reason="VAULT_KEY_VERSION",
            hint="undo what forbids it: soft deletion, min_encryption_version, min_decryption_version, a trim",
        )


def _public_key(name: str, key_type: KeyType, data: Mapping[str, Any]) -> bytes:
    version = data["keys"][str(VERSION)]
    pem = version.get("public_key") if isinstance(version, Mapping) else None
    try:
        key = load_pem_public_key(str(pem).encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, ec.EllipticCurvePublicKey):
        found = {"secp256r1": KeyType.EC_P256, "secp384r1": KeyType.EC_P384}.get(key.curve.name)
    else:
        found = _BY_NAME.get(f"rsa-{key.key_size}") if isinstance(key, rsa.RSAPublicKey) else None
    if key is None or found != key_type:
        raise Unavailable(f"vault shows no public key of `{name}` that is of its type", reason="VAULT_ANSWER")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
