"""A small strict reader and writer of DER (X.690 §10, §11): definite minimal lengths, one-byte tags, no slack.

`read` works on offsets and copies nothing, for the hot path; `Reader` walks a value step by step for the rest.
Malformed input raises InvalidArgument with reason DER; callers that know what it should have been say so.
"""

from __future__ import annotations

from ca.errors import InvalidArgument

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = 0x05
OBJECT_IDENTIFIER = 0x06
UTF8_STRING = 0x0C
PRINTABLE_STRING = 0x13
T61_STRING = 0x14
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
BMP_STRING = 0x1E
SEQUENCE = 0x30
SET = 0x31

_TAGS = [bytes([tag]) for tag in range(256)]


def _length(size: int) -> bytes:
    if size < 0x80:
        return _TAGS[size]
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return _TAGS[0x80 | len(octets)] + octets


_LENGTHS = [_length(size) for size in range(4096)]


def malformed(what: str) -> InvalidArgument:
    """The error of this module, ready to be raised."""
    return InvalidArgument(f"malformed DER: {what}", reason="DER")


def tlv(tag: int, content: bytes) -> bytes:
    """One value: tag, length, content."""
    size = len(content)
    return _TAGS[tag] + (_LENGTHS[size] if size < 4096 else _length(size)) + content


def integer(value: int) -> bytes:
    """INTEGER in the fewest octets of two's complement (X.690 §8.3.2); `value` is not negative."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def object_identifier(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from its dotted form (X.690 §8.19)."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    content = bytearray()
    for arc in (first * 40 + second, *rest):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        content += bytes(reversed(septets))
    return tlv(OBJECT_IDENTIFIER, bytes(content))


def read(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Content start and end of the value with this tag at `at`; it must lie before `end`. Raises InvalidArgument."""
    start = at + 2
    if start > end or data[at] != tag:
        raise malformed(f"expected tag 0x{tag:02x} at offset {at}")
    size = data[at + 1]
    if size >= 0x80:
        octets = size & 0x7F
        start += octets
        if not 0 < octets <= 4 or start > end:
            raise malformed(f"bad length at offset {at}")
        size = data[at + 2]
        if octets > 1:
            size = size << 8 | data[at + 3] if octets == 2 else int.from_bytes(data[at + 2 : start], "big")
        if size < 0x80 or size >> (8 * (octets - 1)) == 0:  # X.690 §10.1: the shortest form only
            raise malformed(f"length is not minimal at offset {at}")
    stop = start + size
    if stop > end:
        raise malformed(f"value at offset {at} is cut off")
    return start, stop


class Reader:
    """Walks the values that lie between two offsets, in order. Every method raises InvalidArgument on bad DER."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = start
        self.end = len(data) if end is None else end

    @property
    def more(self) -> bool:
        return self.at < self.end

    def peek(self) -> int:
        """The next value's tag; -1 at the end."""
        return self.data[self.at] if self.at < self.end else -1

    def take(self, tag: int) -> bytes:
        """The next value's content."""
        start, self.at = read(self.data, self.at, self.end, tag)
        return self.data[start : self.at]

    def take_whole(self, tag: int) -> bytes:
        """The next value with its tag and length."""
        before = self.at
        _, self.at = read(self.data, self.at, self.end, tag)
        return self.data[before : self.at]

    def enter(self, tag: int) -> Reader:
        """A reader of the next value's content; this one goes on behind it."""
        start, self.at = read(self.data, self.at, self.end, tag)
        return Reader(self.data, start, self.at)

    def take_integer(self) -> int:
        """The next value, an INTEGER in minimal form that is not negative."""
        return unsigned(self.take(INTEGER))

    def close(self) -> None:
        """Nothing may be left."""
        if self.at != self.end:
            raise malformed(f"{self.end - self.at} bytes too many at offset {self.at}")


def unsigned(content: bytes) -> int:
    """The number in an INTEGER's content octets: minimal (X.690 §8.3.2) and not negative. Raises InvalidArgument."""
    if not content or content[0] & 0x80:
        raise malformed("integer is empty or negative")
    if len(content) > 1 and content[0] == 0 and not content[1] & 0x80:
        raise malformed("integer is not minimal")
    return int.from_bytes(content, "big")
