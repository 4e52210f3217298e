"""Certification requests (PKCS#10, RFC 2986) for authorities of this trust domain: bytes to sign, then the request."""

from __future__ import annotations

from ca.identity.spiffe_id import TrustDomain
from ca.issuing import der
from ca.issuing import extensions as ext
from ca.issuing.signature import BY_KEY_TYPE
from ca.ports import KeyType

_EXTENSION_REQUEST = der.object_identifier("1.2.840.113549.1.9.14")  # RFC 2985 §5.4.2
_ATTRIBUTES = 0xA0
_NO_NAME = der.tlv(der.SEQUENCE, b"")


def request_info(public_key_der: bytes, trust_domain: TrustDomain) -> bytes:
    """The CertificationRequestInfo, to be signed with that key. The one name asked for is the trust domain's ID."""
    names = ext.extension(ext.SUBJECT_ALT_NAME, ext.alternative_names(str(trust_domain.id), ()))
    wanted = der.tlv(der.SET, der.tlv(der.SEQUENCE, names))
    attributes = der.tlv(_ATTRIBUTES, der.tlv(der.SEQUENCE, _EXTENSION_REQUEST + wanted))
    return der.tlv(der.SEQUENCE, der.integer(0) + _NO_NAME + public_key_der + attributes)


def signed_request(info: bytes, key_type: KeyType, signature: bytes) -> bytes:
    """The whole request, DER. It is to be parsed again (`parse_csr`), which verifies what the signer gave."""
    return der.tlv(der.SEQUENCE, info + BY_KEY_TYPE[key_type].identifier + der.tlv(der.BIT_STRING, b"\x00" + signature))
