"""Envoy's messages as bytes, put together from parts that are bytes already.

The tree of ten thousand rules has some hundred thousand messages, of which nearly all are only put into others: as
objects they take seconds. Fields are written in the order of their numbers, which is how they are written from objects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from xds.core.v3.extension_pb2 import TypedExtensionConfig

Put = Callable[[bytes], bytes]
"""A field: from a message's bytes, or a text's, to those that its owner has for it."""

_LENGTH_DELIMITED = 2
_SHORT = tuple(bytes([n]) for n in range(128))


def varint(number: int) -> bytes:
    """A number as protocol buffers write it."""
    if number < 0x80:
        return _SHORT[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def field(kind: type[Message], name: str) -> Put:
    """How a field of a kind of message is put into it."""
    return numbered(kind.DESCRIPTOR.fields_by_name[name].number)


def numbered(number: int) -> Put:
    """The same of a message that is known by its numbers alone."""
    tag = varint(number << 3 | _LENGTH_DELIMITED)
    short = tuple(tag + length for length in _SHORT)

    def put(raw: bytes) -> bytes:
        length = len(raw)
        return short[length] + raw if length < 0x80 else b"".join((tag, varint(length), raw))

    return put


def entry_of(kind: type[Message], name: str) -> Callable[[str, bytes], bytes]:
    """How an entry is put into a field that is a map from texts to messages."""
    of_map: Any = kind.DESCRIPTOR.fields_by_name[name].message_type
    key_tag, value_tag = (
        varint(of_map.fields_by_name[part].number << 3 | _LENGTH_DELIMITED) for part in ("key", "value")
    )
    put = field(kind, name)

    def put_entry(key: str, value: bytes) -> bytes:
        text = key.encode()
        return put(b"".join((key_tag, varint(len(text)), text, value_tag, varint(len(value)), value)))

    return put_entry


def raw_of(message: Message) -> bytes:
    """A message's bytes, the same each time."""
    raw: bytes = message.SerializeToString(deterministic=True)
    return raw


_type_url, _value = field(AnyMessage, "type_url"), field(AnyMessage, "value")
_name, _typed = field(TypedExtensionConfig, "name"), field(TypedExtensionConfig, "typed_config")


def type_of(kind: type[Message]) -> str:
    """By which an Any says of what kind it is."""
    return f"type.googleapis.com/{kind.DESCRIPTOR.full_name}"


def extension(name: str, kind: Any, raw: bytes = b"") -> bytes:
    """A message of a kind as a named part of a tree."""
    packed = _type_url(type_of(kind).encode())
    if raw:
        packed += _value(raw)
    return _name(name.encode()) + _typed(packed)
