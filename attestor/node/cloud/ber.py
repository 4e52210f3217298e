"""BER as far as signed documents use it (X.690 §8): definite and indefinite lengths, bounded in size, depth and number.

Amazon signs with indefinite lengths, so strict DER would refuse what is real. Raises ValueError, whatever the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_DEPTH = 24
MAX_ELEMENTS = 4000
_CONSTRUCTED = 0x20
_INDEFINITE = 0x80

INTEGER = 0x02
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
SEQUENCE = 0x30
SET = 0x31


@dataclass(frozen=True, slots=True)
class Element:
    """One value: `raw` are its own bytes, header included; `children` are those of a constructed one."""

    tag: int
    raw: bytes
    content: bytes
    children: tuple[Element, ...]
    definite: bool

    def expect(self, tag: int) -> Element:
        """Itself, when it has this tag."""
        if self.tag != tag:
            raise ValueError(f"tag {self.tag:#x} stands where {tag:#x} belongs")
        return self

    def octets(self) -> bytes:
        """An OCTET STRING's value; a constructed one is the concatenation of its parts (X.690 §8.7.3)."""
        if self.tag == OCTET_STRING:
            return self.content
        if self.tag == OCTET_STRING | _CONSTRUCTED:
            return b"".join(part.octets() for part in self.children)
        raise ValueError("no octet string")

    def oid(self) -> str:
        """An OBJECT IDENTIFIER in dotted form."""
        data = self.expect(OBJECT_IDENTIFIER).content
        if not data or len(data) > 64 or data[-1] & 0x80:
            raise ValueError("malformed object identifier")
        arcs, value = [], 0
        for octet in data:
            if value == 0 and octet == 0x80:
                raise ValueError("padded object identifier")
            value = value << 7 | octet & 0x7F
            if not octet & 0x80:
                arcs.append(value)
                value = 0
        first = min(arcs[0] // 40, 2)
        return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))

    def integer(self) -> int:
        """An INTEGER of at most 32 bytes."""
        data = self.expect(INTEGER).content
        if not 0 < len(data) <= 32:
            raise ValueError("malformed integer")
        return int.from_bytes(data, "big", signed=True)


def parse(data: bytes) -> Element:
    """Exactly one value and nothing after it."""
    reader = _Reader(data)
    element, end = reader.read(0, len(data), 0)
    if end != len(data):
        raise ValueError("bytes after the end")
    return element


class _Reader:
    """One pass over the bytes; counts the values that it meets."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._count = 0

    def read(self, at: int, end: int, depth: int) -> tuple[Element, int]:
        """The value at `at`, and where the next begins."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise ValueError("nested too deeply or too many values")
        tag, length, start = self._header(at, end)
        if length is None:
            children, stop = self._until_end(start, end, depth)
            return Element(tag, self._data[at : stop + 2], self._data[start:stop], children, False), stop + 2
        stop = start + length
        if stop > end:
            raise ValueError("a length points past the end")
        children = self._within(start, stop, depth) if tag & _CONSTRUCTED else ()
        return Element(tag, self._data[at:stop], self._data[start:stop], children, True), stop

    def _header(self, at: int, end: int) -> tuple[int, int | None, int]:
        """(tag, length or None for an indefinite one, where the contents begin)"""
        if at + 2 > end:
            raise ValueError("cut off")
        tag, first = self._data[at], self._data[at + 1]
        if tag & 0x1F == 0x1F or tag == 0:
            raise ValueError("a tag that signed documents do not have")
        if first < 0x80:
            return tag, first, at + 2
        if first == _INDEFINITE:
            if not tag & _CONSTRUCTED:
                raise ValueError("a primitive value of indefinite length")
            return tag, None, at + 2
        size = first & 0x7F
        if size > 4 or at + 2 + size > end:
            raise ValueError("a length that is too long")
        return tag, int.from_bytes(self._data[at + 2 : at + 2 + size], "big"), at + 2 + size

    def _within(self, at: int, end: int, depth: int) -> tuple[Element, ...]:
        children = []
        while at < end:
            child, at = self.read(at, end, depth + 1)
            children.append(child)
        return tuple(children)

    def _until_end(self, at: int, end: int, depth: int) -> tuple[tuple[Element, ...], int]:
        """The values up to the end-of-contents octets, and where those stand."""
        children = []
        while self._data[at : at + 2] != b"\x00\x00":
            child, at = self.read(at, end, depth + 1)
            children.append(child)
        if at + 2 > end:
            raise ValueError("cut off")
        return tuple(children), at
