"""A public listener: accepts, counts against the limits, and hands each socket on."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

from ca.runtime import log

ACCEPTS_PER_TURN = 64
"""How many connections are accepted before other work gets its turn, for as long as they took."""

PAUSE_SECONDS = 0.2
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_log = log.get("gate")


class Listener:
    """Owns one listening socket and, for a Unix socket, its file at `path`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        sock: socket.socket,
        accept: Callable[[Listener, socket.socket, object], None],
        *,
        path: str = "",
    ) -> None:
        self.name = name
        self.sock = sock
        self._loop = loop
        self._accept = accept
        self._closed = False
        self._path = path
        self._inode = os.stat(self._path).st_ino if self._path else 0
        loop.add_reader(sock, self._ready)

    def _ready(self) -> None:
        began = self._loop.time()
        for _ in range(ACCEPTS_PER_TURN):
            if self._closed:
                return
            try:
                client, address = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(error)
                return
            try:
                client.setblocking(False)
                self._accept(self, client, address)
            except OSError as error:  # a client that is gone already
                _log.debug("accepted nobody", listener=self.name, error=error.strerror)
                client.close()
        self._rest(self._loop.time() - began)  # more may wait: no flood of them takes more than half of the time

    def _pause(self, error: OSError) -> None:
        """Out of file descriptors or memory: leave callers in the backlog for a moment instead of spinning."""
        _log.error("cannot accept", listener=self.name, reason="OUT_OF_FILES", error=error.strerror)
        self._rest(PAUSE_SECONDS)

    def _rest(self, seconds: float) -> None:
        if self._closed:  # by what the last of those accepted set off
            return
        self._loop.remove_reader(self.sock)
        self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if not self._closed:
            self._loop.add_reader(self.sock, self._ready)

    def close(self) -> None:
        """Stop listening and remove the socket's file, unless it is somebody else's by now."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self.sock)
        self.sock.close()
        if self._path:
            try:
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
            except FileNotFoundError:
                pass
