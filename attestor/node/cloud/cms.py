"""Signed messages (PKCS #7, CMS: RFC 5652 §5) with one signer, verified by a certificate that the caller trusts.

Who the signer is says nothing before `SignedMessage.verify` returned. Only RSA of 2048 bits and more and ECDSA count,
with SHA-256, SHA-384 or SHA-512.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from attestor.node.cloud import ber
from attestor.node.cloud.ber import OCTET_STRING, SEQUENCE, SET, Element
from ca.errors import InvalidArgument
from ca.identity.certificate import load_certificate

MAX_BYTES = 64 * 1024
MAX_CERTIFICATES = 8
MIN_RSA_BITS = 2048

_DATA = "1.2.840.113549.1.7.1"
_SIGNED_DATA = "1.2.840.113549.1.7.2"
_CONTENT_TYPE = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
_RSA = "1.2.840.113549.1.1.1"
_DIGESTS: dict[str, hashes.HashAlgorithm] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
    # Azure names the algorithm of the signature where that of the digest belongs.
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
}
# The algorithm of the signature, and the digest that it names itself (None: that of the signer's digestAlgorithm).
_RSA_SIGNATURES = {
    _RSA: None,
    "1.2.840.113549.1.1.11": "sha256",
    "1.2.840.113549.1.1.12": "sha384",
    "1.2.840.113549.1.1.13": "sha512",
}
_ECDSA_SIGNATURES = {
    "1.2.840.10045.2.1": None,
    "1.2.840.10045.4.3.2": "sha256",
    "1.2.840.10045.4.3.3": "sha384",
    "1.2.840.10045.4.3.4": "sha512",
}


@dataclass(frozen=True, kw_only=True)
class SignedMessage:
    """One signer's message. `content` is None where it is detached. Nothing in here is verified."""

    content: bytes | None
    certificates: tuple[x509.Certificate, ...]
    digest: hashes.HashAlgorithm
    signature_algorithm: str
    signature: bytes
    issuer: bytes  # of the signer's certificate: its name, DER
    serial_number: int
    attributes: bytes | None  # DER of the SET that is signed in place of the content
    attested_digest: bytes | None

    def verify(self, certificate: x509.Certificate, content: bytes) -> None:
        """Returns when this is the certificate's signature over `content`. Raises ValueError.

        RFC 5652 §5.4: with signed attributes, they are what is signed and hold the content's digest.
        """
        if self.content is not None and not hmac.compare_digest(self.content, content):
            raise ValueError("the signed content is another")
        signed = content
        if self.attributes is not None:
            if not hmac.compare_digest(self.attested_digest or b"", _hash(self.digest, content)):
                raise ValueError("the attested digest is that of another content")
            signed = self.attributes
        try:
            self._verify_signature(certificate.public_key(), signed)
        except (InvalidSignature, UnsupportedAlgorithm, TypeError) as error:
            raise ValueError("the signature is not the key's") from error

    def own_signer(self) -> x509.Certificate:
        """The certificate in the message that the signer names (RFC 5652 §5.3). Raises ValueError."""
        for certificate in self.certificates:
            if certificate.serial_number == self.serial_number and certificate.issuer.public_bytes() == self.issuer:
                return certificate
        raise ValueError("the signer's certificate is not in the message")

    def _verify_signature(self, key: object, signed: bytes) -> None:
        if isinstance(key, rsa.RSAPublicKey) and self._fits(_RSA_SIGNATURES):
            if key.key_size < MIN_RSA_BITS:
                raise ValueError("the signer's key is too short")
            key.verify(self.signature, signed, padding.PKCS1v15(), self.digest)
        elif isinstance(key, ec.EllipticCurvePublicKey) and self._fits(_ECDSA_SIGNATURES):
            key.verify(self.signature, signed, ec.ECDSA(self.digest))
        else:
            raise ValueError("the algorithm is not one of the signer's key")

    def _fits(self, algorithms: dict[str, str | None]) -> bool:
        """Whether the algorithm is one of these and means the same digest as the signer says."""
        return algorithms.get(self.signature_algorithm, "") in (None, self.digest.name)


def parse(data: bytes) -> SignedMessage:
    """A SignedData message with exactly one signer. Raises ValueError for anything else."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} bytes")
    try:
        return _signed_data(_content_info(ber.parse(data)))
    except (IndexError, UnsupportedAlgorithm, InvalidArgument) as error:
        raise ValueError("no signed message") from error


def _content_info(element: Element) -> Element:
    kind, content = element.expect(SEQUENCE).children
    if kind.oid() != _SIGNED_DATA:
        raise ValueError("no signed data")
    (signed_data,) = content.expect(0xA0).children
    return signed_data.expect(SEQUENCE)


def _signed_data(element: Element) -> SignedMessage:
    """RFC 5652 §5.1: version, digestAlgorithms, encapContentInfo, [0] certificates, [1] crls, signerInfos."""
    version, digests, encapsulated, *rest = element.children
    version.integer()
    digests.expect(SET)
    optional = {child.tag: child for child in rest[:-1]}
    if len(optional) != len(rest) - 1 or not optional.keys() <= {0xA0, 0xA1}:
        raise ValueError("signed data has parts that do not belong there")
    (signer,) = rest[-1].expect(SET).children
    return _signer_info(signer, _content(encapsulated), _certificates(optional.get(0xA0)))


def _content(encapsulated: Element) -> bytes | None:
    kind, *content = encapsulated.expect(SEQUENCE).children
    if kind.oid() != _DATA:
        raise ValueError("the content is no data")
    if not content:
        return None
    (wrapper,) = content
    (octets,) = wrapper.expect(0xA0).children
    return octets.octets()


def _certificates(element: Element | None) -> tuple[x509.Certificate, ...]:
    children = element.children if element else ()
    if len(children) > MAX_CERTIFICATES:
        raise ValueError(f"more than {MAX_CERTIFICATES} certificates")
    return tuple(load_certificate(child.expect(SEQUENCE).raw) for child in children)


def _signer_info(element: Element, content: bytes | None, certificates: tuple[x509.Certificate, ...]) -> SignedMessage:
    """RFC 5652 §5.3: version, sid, digestAlgorithm, [0] signedAttrs, signatureAlgorithm, signature, [1] others."""
    version, signer, digest, *rest = element.expect(SEQUENCE).children
    version.integer()
    issuer, serial = signer.expect(SEQUENCE).children
    attributes = rest.pop(0) if rest[0].tag == 0xA0 else None
    algorithm, signature, *unsigned = rest
    if len(unsigned) > 1 or any(part.tag != 0xA1 for part in unsigned):
        raise ValueError("the signer has parts that do not belong there")
    known = _DIGESTS.get(digest.expect(SEQUENCE).children[0].oid())
    if known is None:
        raise ValueError("the digest is weak or unknown")
    return SignedMessage(
        content=content,
        certificates=certificates,
        digest=known,
        signature_algorithm=algorithm.expect(SEQUENCE).children[0].oid(),
        signature=signature.expect(OCTET_STRING).content,
        issuer=issuer.expect(SEQUENCE).raw,
        serial_number=serial.integer(),
        # §5.4: signed is the DER encoding with the tag of a SET in place of the [0].
        attributes=None if attributes is None else b"\x31" + attributes.raw[1:],
        attested_digest=None if attributes is None else _attested_digest(attributes),
    )


def _attested_digest(attributes: Element) -> bytes:
    """The message digest among the signed attributes; the content type must be there too (§5.3, §11)."""
    if not attributes.definite:
        raise ValueError("signed attributes are not DER")
    values: dict[str, Element] = {}
    for attribute in attributes.children:
        kind, members = attribute.expect(SEQUENCE).children
        if kind.oid() in values:
            raise ValueError("a signed attribute is there twice")
        values[kind.oid()] = members.expect(SET)
    if _CONTENT_TYPE not in values or _MESSAGE_DIGEST not in values:
        raise ValueError("a signed attribute is missing")
    (content_type,) = values[_CONTENT_TYPE].children
    (digest,) = values[_MESSAGE_DIGEST].children
    if content_type.oid() != _DATA:
        raise ValueError("the signed content type is another")
    return digest.expect(OCTET_STRING).content


def _hash(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()
