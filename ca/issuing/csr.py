"""Certification requests (PKCS#10, RFC 2986): the signature is verified before anything in one is believed.

The key that verifies is loaded from the very bytes that are certified later, and the signature is checked over the
very bytes that the names are read from, so that no second parser can see another request.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ca.errors import InvalidArgument
from ca.issuing import der
from ca.issuing.names import Attribute, decode_name
from ca.issuing.signature import BY_IDENTIFIER, check_signature
from ca.issuing.spki import PublicKeyInfo, read_public_key

MAX_CSR_BYTES = 16 * 1024
"""Checked before parsing. The longest SPIFFE ID and a hundred DNS names fit."""

_VERSION = b"\x02\x01\x00"
_ATTRIBUTES = 0xA0
_EXTENSION_REQUEST = der.object_identifier("1.2.840.113549.1.9.14")
_SUBJECT_ALT_NAME = der.object_identifier("2.5.29.17")
_DNS_NAME = 0x82
_URI = 0x86


@dataclass(frozen=True, kw_only=True)
class Csr:
    """A request whose signature was verified, hence whose sender holds the private key.

    `public_key_der` is the SubjectPublicKeyInfo cut out of the request, byte for byte. The names are what the sender
    would like to be called, no more; they are parsed when asked for, and then raise InvalidArgument (CSR_MALFORMED).
    """

    key: PublicKeyInfo
    subject_der: bytes
    attributes_der: bytes

    @property
    def public_key_der(self) -> bytes:
        return self.key.der

    @property
    def key_algorithm(self) -> str:
        """`ec-p256`, `ec-p384` or `rsa-<bits>`."""
        return self.key.name

    @cached_property
    def subject(self) -> tuple[Attribute, ...]:
        try:
            return decode_name(self.subject_der)
        except InvalidArgument as error:
            raise _malformed(error) from error

    @cached_property
    def uri_sans(self) -> tuple[str, ...]:
        return self._alternative_names(_URI)

    @cached_property
    def dns_names(self) -> tuple[str, ...]:
        return self._alternative_names(_DNS_NAME)

    def _alternative_names(self, tag: int) -> tuple[str, ...]:
        try:
            return tuple(text for found, text in _read_names(self.attributes_der) if found == tag)
        except InvalidArgument as error:
            raise _malformed(error) from error


def parse_csr(request: bytes) -> Csr:
    """Parses and verifies a DER request.

    Raises InvalidArgument with reason CSR_TOO_LONG, CSR_MALFORMED, CSR_ALGORITHM, CSR_SIGNATURE, or a KEY_* reason
    of `read_public_key` for a key that is not certified.
    """
    key, subject, attributes = _verify(request)
    return Csr(key=key, subject_der=subject, attributes_der=attributes)


def proven_key(request: bytes) -> PublicKeyInfo:
    """The same for whom the key alone counts."""
    return _verify(request)[0]


def _verify(request: bytes) -> tuple[PublicKeyInfo, bytes, bytes]:
    """Key, subject and attributes of a request whose signature is the key's."""
    if len(request) > MAX_CSR_BYTES:
        raise InvalidArgument(f"CSR is longer than {MAX_CSR_BYTES} bytes", reason="CSR_TOO_LONG")
    try:
        info, subject, spki, attributes, algorithm_der, signature = _cut(request)
    except InvalidArgument as error:
        raise _malformed(error) from error
    algorithm = BY_IDENTIFIER.get(algorithm_der)
    if algorithm is None:
        raise InvalidArgument(
            "CSR is signed with an algorithm that is not accepted",
            reason="CSR_ALGORITHM",
            hint="use ECDSA or RSA PKCS#1 v1.5 with SHA-256, SHA-384 or SHA-512",
        )
    key = read_public_key(spki)
    try:
        check_signature(key.load(), algorithm, signature, info)
    except InvalidArgument as error:
        if error.reason == "SIGNATURE":
            raise InvalidArgument(
                "CSR signature does not verify",
                reason="CSR_SIGNATURE",
                hint="the request must be signed with the private key of the public key that it names",
            ) from error
        raise
    return key, subject, attributes


def _cut(request: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
    """Info, subject, public key, attributes, algorithm (each whole) and the signature's bits (RFC 2986 §4)."""
    end = len(request)
    info_at, stop = der.read(request, 0, end, der.SEQUENCE)
    at, info_end = der.read(request, info_at, stop, der.SEQUENCE)
    if stop != end or not request.startswith(_VERSION, at):
        raise der.malformed("not a version 1 request, or bytes behind it")
    subject_at = at + len(_VERSION)
    _, key_at = der.read(request, subject_at, info_end, der.SEQUENCE)
    _, attributes_at = der.read(request, key_at, info_end, der.SEQUENCE)
    attributes_start, attributes_end = der.read(request, attributes_at, info_end, _ATTRIBUTES)
    _, signature_at = der.read(request, info_end, end, der.SEQUENCE)
    bits_at, stop = der.read(request, signature_at, end, der.BIT_STRING)
    if attributes_end != info_end or stop != end or bits_at == stop or request[bits_at] != 0:
        raise der.malformed("bytes that belong to nothing")
    return (
        request[info_at:info_end],
        request[subject_at:key_at],
        request[key_at:attributes_at],
        request[attributes_start:attributes_end],
        request[info_end:signature_at],
        request[bits_at + 1 : stop],
    )


def _read_names(attributes: bytes) -> list[tuple[int, str]]:
    """Tag and text of the DNS names and URIs in the subjectAltName of the extension request (RFC 2985 §5.4.2).

    Both are there once at most (RFC 2986 §4.1, RFC 5280 §4.2): of two, other readers see the first or the last alone.
    """
    found: list[list[tuple[int, str]]] = []
    requests = 0
    reader = der.Reader(attributes)
    while reader.more:
        attribute = reader.enter(der.SEQUENCE)
        if attribute.take_whole(der.OBJECT_IDENTIFIER) != _EXTENSION_REQUEST:
            continue
        requests += 1
        values = attribute.enter(der.SET)
        attribute.close()
        extensions = values.enter(der.SEQUENCE)
        values.close()
        while extensions.more:
            extension = extensions.enter(der.SEQUENCE)
            if extension.take_whole(der.OBJECT_IDENTIFIER) == _SUBJECT_ALT_NAME:
                found.append(_names_of_extension(extension))
    if requests > 1 or len(found) > 1:
        raise der.malformed("names are asked for twice")
    return found[0] if found else []


def _names_of_extension(extension: der.Reader) -> list[tuple[int, str]]:
    if extension.peek() == der.BOOLEAN:
        extension.take(der.BOOLEAN)
    value = extension.enter(der.OCTET_STRING)
    extension.close()
    names = value.enter(der.SEQUENCE)
    value.close()
    found = []
    while names.more:
        tag = names.peek()
        content = names.take(tag)
        if tag in (_DNS_NAME, _URI):
            if not content.isascii():  # RFC 5280 §4.2.1.6: IA5String
                raise der.malformed("alternative name is not ASCII")
            found.append((tag, content.decode()))
    return found


def _malformed(error: InvalidArgument) -> InvalidArgument:
    return InvalidArgument(f"failed to parse CSR: {error.detail}", reason="CSR_MALFORMED")
