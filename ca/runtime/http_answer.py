"""One HTTP/1.1 answer from the bytes that come, bounded and strict (RFC 9112). Pure: who reads them feeds them."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from typing import NamedTuple

MAX_HEAD_BYTES = 128 << 10
_CHUNK_LINE_BYTES = 1024
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_FIELD = r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)\r\n"
_EACH, _ALL = re.compile(_FIELD), re.compile(f"(?:{_FIELD})*+")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
_LENGTH = re.compile(r"[0-9]{1,18}")
_ONCE = frozenset({"content-length", "transfer-encoding"})


class NoHttp(Exception):
    """What came is no answer; what it is, is not told."""


class TooLarge(Exception):
    """The body is longer than it may be."""


class Answer(NamedTuple):
    """An answer whole. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Incoming:
    """What came and was not taken yet; `ended` when no more can come."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False

    def more(self) -> Generator[None, None, None]:
        """Waits. Raises EOFError."""
        if self.ended:
            raise EOFError("it ended the connection amid an answer")
        yield

    def until(self, end: bytes, most: int) -> Generator[None, None, bytes]:
        """Without the end; at most so many bytes with it."""
        searched = 0
        while (at := self.data.find(end, searched)) < 0:
            if len(self.data) >= most:
                raise NoHttp
            searched = max(0, len(self.data) - len(end) + 1)
            yield from self.more()
        if at + len(end) > most:
            raise NoHttp
        found = bytes(self.data[:at])
        del self.data[: at + len(end)]
        return found

    def exactly(self, count: int) -> Generator[None, None, bytes]:
        while len(self.data) < count:
            yield from self.more()
        found = bytes(self.data[:count])
        del self.data[:count]
        return found


def read_answer(incoming: Incoming, method: str, max_bytes: int) -> Generator[None, None, tuple[Answer, bool]]:
    """The answer, and whether another may follow on the connection. Raises NoHttp, TooLarge, EOFError."""
    status, headers, lasting = yield from _head(incoming)
    while 100 <= status < 200:  # RFC 9110 §15.2: another follows; we never ask for another protocol
        if status == 101:
            raise NoHttp
        status, headers, lasting = yield from _head(incoming)
    body, whole = yield from _body(incoming, method, status, headers, max_bytes)
    return Answer(status, headers, body), lasting and whole


def _head(incoming: Incoming) -> Generator[None, None, tuple[int, dict[str, str], bool]]:
    head = (yield from incoming.until(b"\r\n\r\n", MAX_HEAD_BYTES)).decode("latin-1")
    first, _, rest = f"{head}\r\n".partition("\r\n")
    if (said := _STATUS.fullmatch(first)) is None or _ALL.fullmatch(rest) is None:
        raise NoHttp
    headers: dict[str, str] = {}
    for key, text in _EACH.findall(rest):
        name, value = key.lower(), text.strip(" \t")
        if name in _ONCE and headers.get(name, value) != value:
            raise NoHttp
        headers[name] = value
    closing = "close" in (option.strip() for option in headers.get("connection", "").lower().split(","))
    return int(said[2]), headers, said[1] == "1" and not closing


def _body(
    incoming: Incoming, method: str, status: int, headers: Mapping[str, str], max_bytes: int
) -> Generator[None, None, tuple[bytes, bool]]:
    """RFC 9112 §6.3, and whether its end was where it was said to be."""
    if method == "HEAD" or status in (204, 304):
        return b"", True
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise NoHttp
        return (yield from _chunks(incoming, max_bytes)), True
    if length is not None:
        if _LENGTH.fullmatch(length) is None:
            raise NoHttp
        if int(length) > max_bytes:
            raise TooLarge
        return (yield from incoming.exactly(int(length))), True
    while not incoming.ended:
        if len(incoming.data) > max_bytes:
            raise TooLarge
        yield
    return (yield from incoming.exactly(len(incoming.data))), False


def _chunks(incoming: Incoming, max_bytes: int) -> Generator[None, None, bytes]:
    kept = bytearray()
    while True:
        line = _SIZE.fullmatch((yield from incoming.until(b"\r\n", _CHUNK_LINE_BYTES)))
        if line is None:
            raise NoHttp
        if not (size := int(line[1], 16)):
            break
        if len(kept) + size > max_bytes:
            raise TooLarge
        kept += yield from incoming.exactly(size)
        if (yield from incoming.exactly(2)) != b"\r\n":
            raise NoHttp
    left = MAX_HEAD_BYTES
    while trailer := (yield from incoming.until(b"\r\n", left)):
        left -= len(trailer) + 2
    return bytes(kept)
