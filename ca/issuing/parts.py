"""A to-be-signed certificate taken apart, for the lint: all of it, or only what varies within a template."""

from __future__ import annotations

from typing import NamedTuple

from ca.issuing import der
from ca.issuing import extensions as ext

VERSION_3 = b"\xa0\x03\x02\x01\x02"
EXTENSIONS = 0xA3
_CONTEXT_1, _CONTEXT_2 = 0x81, 0x82

NamesOf = tuple[tuple[int, bytes], ...]


class Extension(NamedTuple):
    """`value` is the content of the OCTET STRING."""

    critical: bool
    value: bytes


class Parts(NamedTuple):
    """Fields of a TBSCertificate. `serial` is the INTEGER's content; `subject`, `issuer`, `algorithm`, `validity`
    and `key` are whole values; `oids` lists the extensions in their order; an absent extension is None."""

    version: bytes
    serial: bytes
    algorithm: bytes
    issuer: bytes
    validity: bytes
    subject: bytes
    key: bytes
    unique_ids: bytes
    oids: tuple[bytes, ...]
    key_usage: Extension | None
    extended_key_usage: Extension | None
    basic_constraints: Extension | None
    subject_key_id: Extension | None
    authority_key_id: Extension | None
    names_critical: bool
    names: NamesOf | None


VARYING = frozenset({"serial", "validity", "subject", "key", "subject_key_id", "names"})
"""What differs between two certificates of one template. All else is compared with bytes that passed the lint."""


def parse_tbs(tbs: bytes) -> Parts:
    """Takes a whole TBSCertificate apart (RFC 5280 §4.1). Raises InvalidArgument (reason DER)."""
    outer = der.Reader(tbs)
    reader = outer.enter(der.SEQUENCE)
    outer.close()
    version = reader.take_whole(0xA0) if reader.peek() == 0xA0 else b""
    serial = reader.take(der.INTEGER)
    algorithm = reader.take_whole(der.SEQUENCE)
    issuer = reader.take_whole(der.SEQUENCE)
    validity = reader.take_whole(der.SEQUENCE)
    subject = reader.take_whole(der.SEQUENCE)
    key = reader.take_whole(der.SEQUENCE)
    unique_ids = b""
    while reader.peek() in (_CONTEXT_1, _CONTEXT_2):
        unique_ids += reader.take_whole(reader.peek())
    found = _extensions(reader.enter(EXTENSIONS)) if reader.more else []
    reader.close()
    by_oid = dict(found)
    names = by_oid.get(ext.SUBJECT_ALT_NAME)
    return Parts(
        version,
        serial,
        algorithm,
        issuer,
        validity,
        subject,
        key,
        unique_ids,
        tuple(oid for oid, _ in found),
        by_oid.get(ext.KEY_USAGE),
        by_oid.get(ext.EXTENDED_KEY_USAGE),
        by_oid.get(ext.BASIC_CONSTRAINTS),
        by_oid.get(ext.SUBJECT_KEY_IDENTIFIER),
        by_oid.get(ext.AUTHORITY_KEY_IDENTIFIER),
        names is not None and names.critical,
        None if names is None else read_names(names.value),
    )


def _extensions(wrapper: der.Reader) -> list[tuple[bytes, Extension]]:
    reader = wrapper.enter(der.SEQUENCE)
    wrapper.close()
    found = []
    while reader.more:
        one = reader.enter(der.SEQUENCE)
        oid = one.take_whole(der.OBJECT_IDENTIFIER)
        critical = one.peek() == der.BOOLEAN
        if critical and one.take(der.BOOLEAN) != b"\xff":  # X.690 §11.1, §11.5: TRUE is 0xff, FALSE is not written
            raise der.malformed("critical is neither TRUE nor absent")
        found.append((oid, Extension(critical, one.take(der.OCTET_STRING))))
        one.close()
    return found


def read_names(value: bytes) -> NamesOf:
    """Tag and content of each GeneralName in a subjectAltName's value. Raises InvalidArgument (reason DER)."""
    end = len(value)
    at, stop = der.read(value, 0, end, der.SEQUENCE)
    if stop != end:
        raise der.malformed("bytes behind the alternative names")
    found = []
    while at < end:
        tag = value[at]
        start, at = der.read(value, at, end, tag)
        found.append((tag, value[start:at]))
    return tuple(found)
