"""What an agent shows while it attests over HTTP: one page on one path, for a short time, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

LIFETIME_SECONDS = 60.0
"""Longer than an attestation takes."""

AFTER_ANSWER_SECONDS = 2.0
"""How long it goes on once somebody was shown the page: he need not have been the server."""

MAX_CONNECTIONS = 16
MAX_HEAD_BYTES = 4096
REQUEST_SECONDS = 5.0


class ChallengeServer:
    """Listens from `open` until it has shown what it was given, or time is over."""

    def __init__(self, address: str | None, port: int, path: str) -> None:
        self._address, self._port = address, port
        self._wanted = f"GET {path} ".encode()
        self._page = b""
        self._server: asyncio.Server | None = None
        self._end: asyncio.TimerHandle | None = None
        self._connections = 0

    async def open(self) -> int:
        """The port. Raises OSError."""
        self.close()
        self._server = await asyncio.start_server(self._serve, sock=self._bound(), limit=MAX_HEAD_BYTES)
        self._close_in(LIFETIME_SECONDS)
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def listens(self) -> bool:
        return self._server is not None

    def show(self, page: bytes) -> None:
        self._page = page

    def close(self) -> None:
        self._page = b""
        if self._end is not None:
            self._end.cancel()
        if self._server is not None:
            self._server.close()
        self._server = self._end = None

    def _bound(self) -> socket.socket:
        """One socket for IPv4 and IPv6, so that a port that was free for one is the other's too."""
        if self._address is not None:
            family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
            return socket.create_server((self._address, self._port), family=family)
        if socket.has_dualstack_ipv6():
            with suppress(OSError):  # IPv6 may be switched off
                return socket.create_server(("", self._port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", self._port))

    def _close_in(self, seconds: float) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(seconds, self.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await self._answer(await reader.readuntil(b"\r\n\r\n"), writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever it was wanted nothing that is served here
        finally:
            self._connections -= 1
            with suppress(OSError):
                writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        shown = self._page if head.startswith(self._wanted) else b""
        status = "200 OK" if shown else "404 Not Found"
        headers = ("Content-Type: text/plain", f"Content-Length: {len(shown)}", "Connection: close")
        writer.write("\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode() + shown)
        await writer.drain()
        if shown and self._server is not None:
            self._close_in(AFTER_ANSWER_SECONDS)
