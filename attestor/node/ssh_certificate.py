"""OpenSSH host certificates and signatures on the wire (PROTOCOL.certkeys; RFC 4253 §6.6, RFC 5656 §3, RFC 8332).

What is verified is what is used: the certificate is one blob, parsed and verified from the same bytes whose hash names
the node.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
    load_ssh_public_key,
)

from ca.errors import Denied, InvalidArgument
from ca.identity.text import quote
from ca.runtime.notes import note

MAX_CERTIFICATE_BYTES = 32 * 1024
RSA_BITS = range(2048, 8192 + 1)
FOREVER = 2**64 - 1
_CERTIFICATE = "-cert-v01@openssh.com"

# Key type → how many strings its public key has on the wire.
_KEY_PARTS = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "ecdsa-sha2-nistp256": hashes.SHA256(),
    "ecdsa-sha2-nistp384": hashes.SHA384(),
    "ecdsa-sha2-nistp521": hashes.SHA512(),
    "rsa-sha2-256": hashes.SHA256(),
    "rsa-sha2-512": hashes.SHA512(),
}
_UNREADABLE = (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm, AssertionError)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCertificate:
    """A certificate that was parsed; nothing is said about trust. `authority` is the key that signed it."""

    blob: bytes
    key: PublicKey
    principals: tuple[str, ...]
    key_id: str
    authority: bytes
    _parsed: SSHCertificate
    _signed: bytes
    _signed_by: str
    _signature: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in base64 for URLs, without padding."""
        return base64.urlsafe_b64encode(hashlib.sha256(self.blob).digest()).rstrip(b"=").decode()

    @property
    def serial(self) -> int:
        return self._parsed.serial

    def verify(self, authorities: Collection[bytes], *, now: datetime) -> None:
        """Raises Denied unless one of `authorities` (keys as on the wire) signed this certificate for a host, now."""
        note("certificate", f"key ID {quote(self.key_id)}, principals {quote(', '.join(self.principals))}")
        if self._parsed.type is not SSHCertificateType.HOST:
            _refuse("NODE_CERTIFICATE_USAGE", "the node's certificate is for a user, not for a host")
        if self._parsed.critical_options:
            names = ", ".join(sorted(one.decode("ascii", "replace") for one in self._parsed.critical_options))
            _refuse("NODE_CERTIFICATE_USAGE", f"the node's certificate has critical options: {quote(names)}")
        if self.authority not in authorities or self._signed_by not in (*_HASHES, "ssh-ed25519"):
            note(
                "authority", f"{key_fingerprint(self.authority)} by {self._signed_by}; none of {len(authorities)} keys"
            )
            raise _untrusted()
        try:
            key = self._parsed.signature_key()
            _check_strength(key)
            # By our own reading of signatures, which knows one spelling of each number alone: the fingerprint is of all
            # of the certificate, and whoever holds it must not make another one of it.
            verify_signature(key, self._signed_by, self._signature, self._signed)
        except (InvalidSignature, *_UNREADABLE) as error:
            note("authority", "its signature on the certificate is wrong")
            raise _untrusted() from error
        self._check_validity(now)

    def _check_validity(self, now: datetime) -> None:
        """The end is not included (PROTOCOL.certkeys)."""
        begins, ends, moment = self._parsed.valid_after, self._parsed.valid_before, int(now.timestamp())
        note("certificate's validity", f"{begins} to {ends}, the clock here says {moment} (seconds since 1970)")
        if ends != FOREVER and moment >= ends:
            _refuse("NODE_CERTIFICATE_EXPIRED", "the node's certificate has expired")
        if moment < begins:
            _refuse("NODE_CERTIFICATE_NOT_YET_VALID", "the node's certificate is not valid yet")


def parse_host_certificate(blob: bytes) -> HostCertificate:
    """Raises InvalidArgument CERTIFICATE_MALFORMED, Denied NODE_CERTIFICATE_KEY."""
    if len(blob) > MAX_CERTIFICATE_BYTES:
        raise InvalidArgument(
            f"certificate is longer than {MAX_CERTIFICATE_BYTES} bytes", reason="CERTIFICATE_MALFORMED"
        )
    try:
        kind, authority, signature = _outline(blob)
        signed_by, rest = _string(signature)
        signature_blob, rest = _string(rest)
        if rest:
            raise ValueError("bytes behind the signature")
        parsed = load_ssh_public_identity(kind.encode() + b" " + base64.b64encode(blob))
        if not isinstance(parsed, SSHCertificate):
            raise ValueError("no certificate")
        principals = tuple(one.decode("ascii") for one in parsed.valid_principals)
        key, key_id = parsed.public_key(), parsed.key_id.decode("utf-8")
    except _UNREADABLE as error:
        raise InvalidArgument("malformed or unsupported OpenSSH certificate", reason="CERTIFICATE_MALFORMED") from error
    _check_strength(key)
    return HostCertificate(
        blob=blob,
        key=key,
        principals=principals,
        key_id=key_id,
        authority=authority,
        _parsed=parsed,
        _signed=blob[: -4 - len(signature)],
        _signed_by=signed_by.decode("ascii", "replace"),
        _signature=signature_blob,
    )


def parse_key(line: str) -> bytes | None:
    """The key on a line of `authorized_keys`, as on the wire; None for a comment or nothing. Raises ValueError."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    for kind, body in pairwise(words):
        if kind in _KEY_PARTS:
            try:
                blob = base64.b64decode(body, validate=True)
                _check_strength(load_ssh_public_key(f"{kind} {body}".encode()))
            except (*_UNREADABLE, Denied) as error:
                raise ValueError(f"the key on {quote(line.strip())} cannot be used") from error
            return blob
    raise ValueError(f"no key that is known here on {quote(line.strip())}; known: {', '.join(_KEY_PARTS)}")


def key_fingerprint(blob: bytes) -> str:
    """As ssh-keygen shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).rstrip(b"=").decode()


def key_kind(key: PublicKey) -> str:
    """The key's type on the wire."""
    if isinstance(key, rsa.RSAPublicKey):
        return "ssh-rsa"
    return "ssh-ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else f"ecdsa-sha2-nistp{key.key_size}"


def sign(key: PrivateKey, data: bytes) -> tuple[str, bytes]:
    """(format, blob)."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ssh-ed25519", key.sign(data)
    if isinstance(key, rsa.RSAPrivateKey):
        return "rsa-sha2-512", key.sign(data, padding.PKCS1v15(), hashes.SHA512())
    kind = key_kind(key.public_key())
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_HASHES[kind])))
    return kind, _mpint(r) + _mpint(s)


def verify_signature(key: PublicKey, kind: str, blob: bytes, data: bytes, *, sha1: bool = False) -> None:
    """Raises InvalidSignature; ValueError for another kind of signature than the key's, or SHA-1 without `sha1`."""
    if isinstance(key, rsa.RSAPublicKey):
        if kind not in ("rsa-sha2-256", "rsa-sha2-512") and not (sha1 and kind == "ssh-rsa"):
            raise ValueError(f"RSA keys sign by `rsa-sha2-256` or `rsa-sha2-512` here, not {quote(kind)}")
        key.verify(blob, data, padding.PKCS1v15(), _HASHES.get(kind, hashes.SHA1()))  # noqa: S303
        return
    if kind != key_kind(key):
        raise ValueError(f"the key is {key_kind(key)}, the signature {quote(kind)}")
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(blob, data)
        return
    r, rest = _string(blob)
    s, rest = _string(rest)
    if rest:
        raise ValueError("bytes behind the signature")
    key.verify(encode_dss_signature(_integer(r), _integer(s)), data, ec.ECDSA(_HASHES[kind]))


def _outline(blob: bytes) -> tuple[str, bytes, bytes]:
    """(type, the signing key, the signature) of a certificate, which ends with the signature. Raises ValueError."""
    kind, rest = _string(blob)
    plain = kind.decode("ascii").removesuffix(_CERTIFICATE)
    if not kind.endswith(_CERTIFICATE.encode()) or plain not in _KEY_PARTS:
        raise ValueError("a type of certificate that is not known here")
    for _ in range(1 + _KEY_PARTS[plain]):  # nonce, public key
        _, rest = _string(rest)
    rest = rest[12:]  # serial, type
    for _ in range(2):  # key ID, principals
        _, rest = _string(rest)
    rest = rest[16:]  # validity
    for _ in range(3):  # critical options, extensions, reserved
        _, rest = _string(rest)
    authority, rest = _string(rest)
    signature, rest = _string(rest)
    if rest:
        raise ValueError("bytes behind the certificate")
    return kind.decode("ascii"), authority, signature


def _check_strength(key: object) -> None:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in RSA_BITS:
        note("key", f"RSA of {key.key_size} bits; {RSA_BITS.start} to {RSA_BITS.stop - 1} are accepted")
        raise Denied(
            f"an RSA key of the node's certificate does not have {RSA_BITS.start} to {RSA_BITS.stop - 1} bits",
            reason="NODE_CERTIFICATE_KEY",
        )
    if not isinstance(key, PublicKey):
        raise ValueError("a type of key that is not known here")


def _string(data: bytes) -> tuple[bytes, bytes]:
    """RFC 4251 §5. Raises ValueError."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 + length or len(data) < 4:
        raise ValueError("ends early")
    return data[4 : 4 + length], data[4 + length :]


def _integer(mpint: bytes) -> int:
    """A positive mpint in its only spelling. Raises ValueError."""
    found = int.from_bytes(mpint, "big")
    if len(mpint) > 67 or _mpint(found)[4:] != mpint:
        raise ValueError("no positive integer in its shortest form")
    return found


def _mpint(number: int) -> bytes:
    body = number.to_bytes(number.bit_length() // 8 + 1, "big") if number else b""
    return len(body).to_bytes(4, "big") + body


def _untrusted() -> Denied:
    return Denied(
        "the node's certificate was not signed by an authority that is configured here",
        reason="NODE_CERTIFICATE_UNTRUSTED",
        hint="`caadmin explain agent` says which key signed it",
    )


def _refuse(reason: str, detail: str) -> NoReturn:
    note("certificate", detail)
    raise Denied(detail, reason=reason)
