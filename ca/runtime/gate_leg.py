"""One non-blocking socket of a relay: reads while its sink takes the bytes, keeps what the kernel did not take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

CHUNK_BYTES = 64 << 10
"""Most that is read at once, and so most that a paused relay holds per direction."""

CHUNKS_AT_ONCE = 4
"""Read before others have their turn."""

Buffer = bytes | bytearray | memoryview


class Leg:
    """Back-pressure is strict: whoever writes to a leg whose `pending` is not empty must pause its own source.

    `on_chunk` gets a view of a buffer that all legs of a loop share: valid only until it returns. `on_end` is called
    once at the end of the stream or on an error. After `close` no callback comes any more.
    """

    __slots__ = (
        "_closed",
        "_loop",
        "_reading",
        "_view",
        "on_chunk",
        "on_drained",
        "on_end",
        "pending",
        "since",
        "sock",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        view: memoryview,
        *,
        on_chunk: Callable[[memoryview], None],
        on_end: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._view = view
        self._reading = False
        self._closed = False
        self.sock = sock
        self.pending = bytearray()
        self.since = 0.0
        """Loop time of the last progress while `pending` is not empty."""
        self.on_chunk = on_chunk
        self.on_end = on_end
        self.on_drained = on_drained

    def resume(self) -> None:
        """Read from now on."""
        if not self._reading and not self._closed:
            self._reading = True
            self._loop.add_reader(self.sock, self.read)

    def pause(self) -> None:
        """Leave what comes in the kernel, which then slows the sender down."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.sock)

    def read(self) -> None:
        """Hand on what is there.

        Until there is nothing more, or anew after some chunks: of a connection that was reset while there was something
        to read, uvloop tells but once.
        """
        for _ in range(CHUNKS_AT_ONCE):
            try:
                count = self.sock.recv_into(self._view)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                count = 0
            if not count:
                self.pause()
                self.on_end()
                return
            self.on_chunk(self._view[:count])
            if not self._reading:
                return
        self.pause()
        self.resume()

    def write(self, data: Buffer) -> None:
        """Send now what the kernel takes; the rest is `pending`, and `on_drained` is called when it is gone."""
        if self._closed:
            return
        if self.pending:
            self.pending += data
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.on_end()
            return
        if sent < len(data):
            self.pending += memoryview(data)[sent:]
            self.since = self._loop.time()
            self._loop.add_writer(self.sock, self._flush)

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self.pending)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.on_end()
            return
        del self.pending[:sent]
        self.since = self._loop.time()
        if not self.pending:
            self._loop.remove_writer(self.sock)
            self.on_drained()

    def close(self) -> None:
        """Close the socket; what is pending is lost."""
        if self._closed:
            return
        self._closed = True
        self.pause()
        if self.pending:
            self._loop.remove_writer(self.sock)
            self.pending.clear()
        self.sock.close()
