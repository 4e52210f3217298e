"""Distinguished names: SPIRE's string types and order, written to DER and read from it (RFC 5280 §4.1.2.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ca.errors import InvalidArgument
from ca.identity.text import quote
from ca.issuing import der


class Attribute(NamedTuple):
    """One attribute of a name: its type's OBJECT IDENTIFIER in DER, and its text."""

    oid: bytes
    text: str


COUNTRY = der.object_identifier("2.5.4.6")
ORGANIZATION = der.object_identifier("2.5.4.10")
ORGANIZATIONAL_UNIT = der.object_identifier("2.5.4.11")
LOCALITY = der.object_identifier("2.5.4.7")
PROVINCE = der.object_identifier("2.5.4.8")
COMMON_NAME = der.object_identifier("2.5.4.3")
SERIAL_NUMBER = der.object_identifier("2.5.4.5")

UPPER_BOUNDS = {
    COUNTRY: 2,
    ORGANIZATION: 64,
    ORGANIZATIONAL_UNIT: 64,
    LOCALITY: 128,
    PROVINCE: 128,
    COMMON_NAME: 64,
    SERIAL_NUMBER: 64,
}
"""The attribute types that we write, in the order in which we write them, with RFC 5280 appendix A.1's ub-* lengths."""

_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]*")  # X.680 §41.4
_DECODERS = {
    der.UTF8_STRING: "utf-8",
    der.PRINTABLE_STRING: "ascii",
    der.IA5_STRING: "ascii",
    der.T61_STRING: "latin-1",
    der.BMP_STRING: "utf-16-be",
}


def encode_attribute(attribute: Attribute) -> bytes:
    """A RelativeDistinguishedName of one attribute: PrintableString where the characters allow it, else UTF8String.

    Raises InvalidArgument (reason SUBJECT) when the text is empty, too long, or no two-letter country.
    """
    text = attribute.text
    printable = _PRINTABLE.fullmatch(text) is not None
    if not 0 < len(text) <= UPPER_BOUNDS[attribute.oid] or (attribute.oid == COUNTRY and len(text) != 2):
        raise InvalidArgument(f"subject attribute is empty or of a wrong length: {quote(text)}", reason="SUBJECT")
    if attribute.oid in (COUNTRY, SERIAL_NUMBER) and not printable:  # X.520 §6.3.1, §6.2.9: PrintableString only
        raise InvalidArgument(f"subject attribute has characters it may not have: {quote(text)}", reason="SUBJECT")
    value = der.tlv(der.PRINTABLE_STRING if printable else der.UTF8_STRING, text.encode())
    return der.tlv(der.SET, der.tlv(der.SEQUENCE, attribute.oid + value))


def encode_name(attributes: Sequence[Attribute]) -> bytes:
    """A Name of these attributes in this order, DER. Raises InvalidArgument (reason SUBJECT)."""
    return der.tlv(der.SEQUENCE, b"".join(encode_attribute(attribute) for attribute in attributes))


def relative_names(name: bytes) -> list[bytes]:
    """The RelativeDistinguishedNames of a Name, each as it stands in the DER. Raises InvalidArgument (reason DER)."""
    outer = der.Reader(name)
    inner = outer.enter(der.SEQUENCE)
    outer.close()
    found = []
    while inner.more:
        found.append(inner.take_whole(der.SET))
    return found


def decode_name(name: bytes) -> tuple[Attribute, ...]:
    """All attributes of a Name in order. Raises InvalidArgument (reason DER)."""
    found = []
    for rdn in relative_names(name):
        members = der.Reader(rdn).enter(der.SET)
        while members.more:
            pair = members.enter(der.SEQUENCE)
            oid = pair.take_whole(der.OBJECT_IDENTIFIER)
            found.append(Attribute(oid, _text(pair)))
            pair.close()
    return tuple(found)


def _text(pair: der.Reader) -> str:
    tag = pair.peek()
    if tag not in _DECODERS:
        raise der.malformed(f"name with a string of type 0x{tag & 0xFF:02x}")
    try:
        return pair.take(tag).decode(_DECODERS[tag])
    except UnicodeDecodeError as error:
        raise der.malformed("name with a string of other characters than its type allows") from error


def requested_subject(attributes: Sequence[Attribute]) -> tuple[Attribute, ...]:
    """What a minted SVID keeps of its CSR's subject: the types of `UPPER_BOUNDS` in that order, without common names
    (the first DNS name takes their place), as SPIRE does."""
    kept = [oid for oid in UPPER_BOUNDS if oid != COMMON_NAME]
    return tuple(attribute for oid in kept for attribute in attributes if attribute.oid == oid and attribute.text)
