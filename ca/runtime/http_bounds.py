"""Answers of `http.client` within bounds: it believes whatever size a chunk says that it has, less than nothing too,
which to Python's files means all that ever comes.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import Any

MAX_HEAD_BYTES = 128 << 10


class BoundedResponse(http.client.HTTPResponse):
    """An answer that is read no further than its head, its body and what chunks may need beside it."""

    def __init__(self, sock: socket.socket, *args: Any, body_bytes: int, **options: Any) -> None:
        super().__init__(_Source(sock, MAX_HEAD_BYTES + 2 * body_bytes), *args, **options)  # type: ignore[arg-type]


class _Source:
    """The part of a socket that an answer is read from."""

    def __init__(self, sock: socket.socket, most: int) -> None:
        self._sock = sock
        self._most = most

    def makefile(self, mode: str) -> io.BufferedReader:
        return _Bounded(self._sock.makefile("rb", buffering=0), self._most)


class _Bounded(io.BufferedReader):
    """Raises HTTPException when more is read than may be, or all that comes is asked for."""

    def __init__(self, raw: io.RawIOBase, most: int) -> None:
        super().__init__(raw)
        self._left = most

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise http.client.HTTPException("a part of the answer has no size")
        return self._counted(super().read(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().readline(size))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise http.client.HTTPException("the answer is longer than it may be")
        return data
