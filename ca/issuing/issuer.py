"""The signing side of a certificate: what an issuer's own certificate says that its issues must repeat."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing import der
from ca.issuing import extensions as ext
from ca.issuing.parts import Parts, parse_tbs
from ca.issuing.signature import BY_KEY_TYPE
from ca.issuing.spki import read_public_key
from ca.issuing.times import decode_validity
from ca.ports import KeyType

MAX_CERTIFICATE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IssuerTemplate:
    """An issuer. `name` is its subject (DER, byte for byte), `key_id` its subject key identifier (20 bytes),
    `algorithm` the AlgorithmIdentifier it signs with (DER). `self_signed` is set while a root is being made.

    `from_certificate` gives the same object for the same bytes, so that templates and lint results are found again.
    """

    trust_domain: TrustDomain
    name: bytes
    key_id: bytes
    key_type: KeyType
    public_key_der: bytes
    algorithm: bytes
    not_after: datetime
    self_signed: bool = False

    @property
    def authority_id(self) -> str:
        """Hex of the subject key identifier, as in the bundle and the LocalAuthority API."""
        return self.key_id.hex()

    @staticmethod
    def from_certificate(certificate: bytes) -> IssuerTemplate:
        """Reads a signing certificate (DER); remembered by its bytes.

        Raises InvalidArgument with reason ISSUER_MALFORMED, or ISSUER_REFUSED for a certificate that may not sign
        SVIDs: no CA, no keyCertSign, no subject key identifier, no SPIFFE ID of a trust domain.
        """
        return _read_issuer(certificate)


@lru_cache(maxsize=256)
def _read_issuer(certificate: bytes) -> IssuerTemplate:
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise InvalidArgument("issuer certificate is too long", reason="ISSUER_MALFORMED")
    try:
        outer = der.Reader(certificate)
        parts = parse_tbs(outer.enter(der.SEQUENCE).take_whole(der.SEQUENCE))
        outer.close()
        trust_domain = _signing_identity(parts)
        _, not_after = decode_validity(parts.validity)
        key = read_public_key(parts.key)
        key_type = KeyType(key.name)
    except (InvalidArgument, ValueError) as error:
        if isinstance(error, InvalidArgument) and error.reason == "ISSUER_REFUSED":
            raise
        raise InvalidArgument("malformed issuer certificate", reason="ISSUER_MALFORMED") from error
    if parts.subject_key_id is None:
        raise _refused("it has no subject key identifier")
    return IssuerTemplate(
        trust_domain=trust_domain,
        name=parts.subject,
        key_id=der.Reader(parts.subject_key_id.value).take(der.OCTET_STRING),
        key_type=key_type,
        public_key_der=parts.key,
        algorithm=BY_KEY_TYPE[key_type].identifier,
        not_after=not_after,
    )


def _signing_identity(parts: Parts) -> TrustDomain:
    """The trust domain that the certificate may sign for (X509-SVID §3.2: B5, B6, B7)."""
    constraints, usage = parts.basic_constraints, parts.key_usage
    if constraints is None or not constraints.value.startswith(b"\x30") or b"\x01\x01\xff" not in constraints.value:
        raise _refused("it is no CA")  # X509-SVID §4.1 (B9)
    if usage is None or not _may_sign(usage.value):
        raise _refused("its key usage lacks keyCertSign")  # X509-SVID §4.3 (B14)
    uris = [content for tag, content in parts.names or () if tag == ext.URI]
    if len(uris) != 1:
        raise _refused("it does not carry exactly one URI")  # SPIFFE-ID §3.1 (A20)
    identity = SpiffeId.parse(uris[0].decode("ascii", "replace"))
    if identity.path:
        raise _refused("its SPIFFE ID has a path")  # SPIFFE-ID §3.1 (A22), X509-SVID §3.2 (B6)
    return identity.trust_domain


def _may_sign(key_usage: bytes) -> bool:
    """keyCertSign is bit 5 of the BIT STRING (RFC 5280 §4.2.1.3)."""
    return len(key_usage) >= 4 and key_usage[0] == der.BIT_STRING and bool(key_usage[3] & 0x04)


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument(f"certificate cannot issue SVIDs: {why}", reason="ISSUER_REFUSED")
