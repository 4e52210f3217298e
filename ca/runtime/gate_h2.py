"""As much of HTTP/2 framing as the gate needs: the client's preface, and where a GOAWAY may be put in."""

from __future__ import annotations

import math

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 §3.4: the first bytes of every HTTP/2 client."""

GOAWAY_NO_ERROR = b"\x00\x00\x08\x07\x00" + bytes(4) + b"\x7f\xff\xff\xff" + bytes(4)
"""RFC 9113 §6.8: start no new streams here; those that exist may go on (last stream 2^31-1, NO_ERROR)."""

MAX_HEADER_BLOCK_BYTES = 64 << 10
"""grpcio refuses more than 16 KiB of header fields, but keeps what comes until their end."""

_HEADER_BYTES = 9
_HEADERS, _PUSH_PROMISE, _CONTINUATION = 1, 5, 9
_OPENING = frozenset({_HEADERS, _PUSH_PROMISE, _CONTINUATION})
_END_HEADERS = 0x04
_PING = b"\x00\x00\x08\x06\x00" + bytes(4)
_PING_ACK = b"\x00\x00\x08\x06\x01" + bytes(4)
_PING_BYTES = _HEADER_BYTES + 8
_WINDOW_UPDATE = b"\x00\x00\x04\x08\x00" + bytes(4)
_WINDOW_UPDATE_BYTES = _HEADER_BYTES + 4


def stream_of(data: memoryview | bytes | bytearray, at: int) -> int:
    """The stream of the frame whose header is there; the reserved bit does not count."""
    return int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF


def ping_before_call(data: bytes, last_stream: int) -> slice | None:
    """Where in frames from a client the PING stands that goes before the HEADERS of a new call, with at most the
    connection's WINDOW_UPDATE before it. So grpc's clients measure the way to the server, with each answer they were
    given. A new call's stream is odd and higher than any before (RFC 9113 §5.1.1)."""
    at = _WINDOW_UPDATE_BYTES if data.startswith(_WINDOW_UPDATE) else 0
    end = at + _PING_BYTES
    if data.startswith(_PING, at) and len(data) >= end + _HEADER_BYTES and data[end + 3] == _HEADERS:
        stream = stream_of(data, end)
        if stream > last_stream and stream % 2:
            return slice(at, end)
    return None


def ping_answer(ping: bytes) -> bytes:
    """The same frame with ACK (RFC 9113 §6.7)."""
    return _PING_ACK + ping[_HEADER_BYTES:]


class FrameTracker:
    """Follows the frames of one direction (RFC 9113 §4.1) without keeping their payload; the first `skip_bytes` are
    none (the preface)."""

    __slots__ = (
        "_block_open",
        "_header",
        "_kind",
        "_left",
        "_stopped",
        "block_bytes",
        "header_frames",
        "headers",
        "last_stream",
    )

    def __init__(self, *, skip_bytes: int = 0) -> None:
        self._header = bytearray()
        self._left = skip_bytes
        self.headers = 0
        """HEADERS frames so far: from a client each begins a call."""
        self.header_frames = 0
        """Those, PUSH_PROMISE and CONTINUATION frames: what begins a call, or makes its beginning longer."""
        self.block_bytes = 0
        """Of the last header block, its CONTINUATION frames included, as far as frames of it have begun."""
        self.last_stream = 0
        """The highest stream of which HEADERS have begun."""
        self._block_open = False
        self._kind: int | None = None
        """Of the last frame that has begun."""
        self._stopped = False

    @property
    def between_frames(self) -> bool:
        """True where a frame of ours may stand: after the first frame (SETTINGS), inside of no frame, and not between
        a HEADERS frame and its CONTINUATIONs (§6.10)."""
        whole = not (self._left or self._header or self._block_open or self._stopped)
        return whole and self._kind is not None

    def feed(self, data: memoryview | bytes, *, allowed: float = math.inf) -> int:
        """Take the next bytes of the direction, up to the payload of the first header frame beyond those that are
        `allowed`; returns how many were taken. That frame goes on when it is fed with more allowed."""
        at, end = 0, len(data)
        while at < end:
            if self._stopped:
                if allowed < 1:
                    break
                allowed -= 1
                self._count()
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            if not self._header and end - at >= _HEADER_BYTES:
                opens = self._frame(data, at)
                at += _HEADER_BYTES
            else:
                step = min(_HEADER_BYTES - len(self._header), end - at)
                self._header += data[at : at + step]
                at += step
                if len(self._header) < _HEADER_BYTES:
                    break
                opens = self._frame(self._header, 0)
                self._header.clear()
            if opens:
                if allowed < 1:
                    self._stopped = True
                    break
                allowed -= 1
                self._count()
        return at

    def _frame(self, data: memoryview | bytes | bytearray, at: int) -> bool:
        """A frame's header is here; True for a header frame, which is not counted yet."""
        self._left = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
        self._kind = kind = data[at + 3]
        if kind not in _OPENING:
            return False
        if kind == _HEADERS:
            self.last_stream = max(self.last_stream, stream_of(data, at))
        self.block_bytes = self._left + (self.block_bytes if kind == _CONTINUATION else 0)
        self._block_open = not data[at + 4] & _END_HEADERS
        return True

    def _count(self) -> None:
        self._stopped = False
        self.header_frames += 1
        self.headers += self._kind == _HEADERS
