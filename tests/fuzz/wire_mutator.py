"""Mutations of protobuf messages in their wire form: fields change, and the lengths around them stay right."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.fuzz.harness import Mutate

MAX_DEPTH = 8
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_NUMBERS = (0, 1, 2, 99, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 253402300800)


@dataclass
class Field:
    """One field; `fields` when its bytes read as a message themselves."""

    number: int
    kind: int
    value: int | bytes
    fields: list[Field] | None = None

    def encode(self) -> bytes:
        tag = _varint(self.number << 3 | self.kind)
        if isinstance(self.value, int):
            return tag + _varint(self.value)
        content = self.value if self.fields is None else encode(self.fields)
        return tag + (_varint(len(content)) if self.kind == BYTES else b"") + content


def encode(fields: list[Field]) -> bytes:
    return b"".join(field.encode() for field in fields)


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 64:
        octet = data[at]
        number |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return number, at
    raise IndexError


def parse(data: bytes, depth: int = 0) -> list[Field] | None:
    """The fields that fill `data` exactly, or None."""
    found: list[Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            number, kind = tag >> 3, tag & 7
            if kind == VARINT:
                value, at = _read_varint(data, at)
                found.append(Field(number, kind, value))
                continue
            size = {FIXED64: 8, FIXED32: 4}.get(kind, -1)
            if kind == BYTES:
                size, at = _read_varint(data, at)
            if size < 0 or not number or at + size > len(data):
                return None
            content, at = data[at : at + size], at + size
            nested = parse(content, depth + 1) if kind == BYTES and content and depth < MAX_DEPTH else None
            found.append(Field(number, kind, content, nested))
    except IndexError:
        return None
    return found


def _every(fields: list[Field]) -> list[tuple[list[Field], int]]:
    found: list[tuple[list[Field], int]] = []
    for at, field in enumerate(fields):
        found.append((fields, at))
        found += _every(field.fields or [])
    return found


def mutate(data: bytes, max_bytes: int, seed: int, default: Mutate) -> bytes:
    """One field changes, goes, or comes twice; bytes that are no message get the fuzzer's own mutation."""
    rng = random.Random(seed)
    fields = parse(data)
    if not fields or rng.random() < 0.1:
        return default(data, max_bytes)
    siblings, at = rng.choice(_every(fields))
    field = siblings[at]
    match rng.randrange(6):
        case 0:
            del siblings[at]
        case 1:
            siblings.insert(rng.randrange(len(siblings) + 1), field)
        case 2:
            siblings[at] = Field(rng.randrange(1, 20), field.kind, field.value, field.fields)
        case 3:
            siblings.insert(at, Field(rng.randrange(1, 20), VARINT, rng.choice(_NUMBERS)))
        case _ if isinstance(field.value, int):
            number = rng.choice((*_NUMBERS, rng.getrandbits(64), field.value + 1, max(field.value - 1, 0)))
            siblings[at] = Field(field.number, field.kind, number & (2**64 - 1))
        case _:
            size = len(field.value) if field.kind != BYTES else len(field.value) + 64
            content = default(field.value or b"\x00", size)
            siblings[at] = Field(
                field.number, field.kind, content.ljust(size, b"\x00") if field.kind != BYTES else content
            )
    changed = encode(fields)
    return changed if len(changed) <= max_bytes else data
