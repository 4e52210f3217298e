"""The same requests as `ca.runtime.https`, on the event loop: where so many are made that a thread's turn for each is
most of what they cost. Connecting alone has a thread, for a name service may not answer.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Generator, Mapping
from functools import partial
from typing import Any

from ca.errors import Unavailable
from ca.runtime.http_answer import Answer, Incoming, NoHttp, TooLarge, read_answer
from ca.runtime.https import HttpClient, why
from ca.runtime.threads import to_thread

_TARGET = re.compile(r"/[\x21-\x7e]*")
_FIELD = re.compile(r"[\x20-\x7e\x80-\xff]*")
Reading = Generator[None, None, tuple[Answer, bool]]


class LoopHttpClient(HttpClient):
    """All its requests are made on one loop, on which it is closed as well."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._free: list[_Connection] = []

    async def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """As the other's."""
        asked = self._written(method, path, body, headers or {})
        try:
            async with asyncio.timeout(self._timeout):
                while (kept := self._kept()) is not None:
                    try:
                        return await self._exchange(kept, method, asked)
                    except (OSError, EOFError):
                        if kept.heard:
                            raise
                return await self._exchange(await self._connected(), method, asked)
        except TooLarge as error:
            raise Unavailable(
                f"{self._source} answered with more than {self._max_bytes} bytes", reason="HTTP_TOO_LARGE"
            ) from error
        except (OSError, EOFError, NoHttp, TimeoutError) as error:
            said = "it answered with what is no HTTP" if isinstance(error, NoHttp) else why(error)
            raise Unavailable(f"cannot ask {self._source}: {said}", reason="HTTP_UNREACHABLE") from error

    def close(self) -> None:
        self._max_idle = 0
        while (kept := self._kept()) is not None:
            kept.end()

    def _kept(self) -> _Connection | None:
        """One that was not closed meanwhile."""
        while self._free:
            connection = self._free.pop()
            if not connection.over:
                return connection
        return None

    async def _exchange(self, connection: _Connection, method: str, asked: bytes) -> Answer:
        try:
            answer, lasting = await connection.ask(asked, read_answer(connection.incoming, method, self._max_bytes))
        except BaseException:
            connection.end()
            raise
        if lasting and len(self._free) < self._max_idle:
            self._free.append(connection)
        else:
            connection.end()
        return answer

    async def _connected(self) -> _Connection:
        given_up: list[None] = []
        try:
            sock = await to_thread(self._dial, given_up)
        except asyncio.CancelledError:
            given_up.append(None)
            raise
        name = None if self._context is None else self._host
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(_Connection, sock=sock, ssl=self._context, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        return made

    def _dial(self, given_up: list[None]) -> socket.socket:
        """In a thread."""
        connect = self._connect or partial(socket.create_connection, (self._host, self._port))
        sock = connect(self._timeout)
        if given_up:
            sock.close()
        else:
            sock.setblocking(False)
        return sock

    def _written(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        target = self._prefix + path
        host = f"[{self._host}]" if ":" in self._host else self._host
        fields = {"Host": f"{host}:{self._port}", "Accept-Encoding": "identity", **headers}
        if body is not None or method in ("POST", "PUT", "PATCH"):
            fields["Content-Length"] = str(len(body or b""))
        lines = [f"{name}: {value}" for name, value in fields.items()]
        if _TARGET.fullmatch(target) is None or not all(map(_FIELD.fullmatch, lines)):
            raise ValueError("no line of a request")
        return "\r\n".join((f"{method} {target} HTTP/1.1", *lines, "", "")).encode("latin-1") + (body or b"")


class _Connection(asyncio.Protocol):
    """One question at a time. `heard` when something of the answer has come."""

    def __init__(self) -> None:
        self.incoming = Incoming()
        self.heard = False
        self.over = False
        self._transport: Any = None
        self._reading: Reading | None = None
        self._answered: asyncio.Future[tuple[Answer, bool]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, asked: bytes, reading: Reading) -> tuple[Answer, bool]:
        self.heard = False
        answered = asyncio.get_running_loop().create_future()
        self._reading, self._answered = reading, answered
        self._transport.write(asked)
        answer, lasting = await answered
        return answer, lasting and not self.over

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self.incoming.data += data
        self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = self.incoming.ended = True
        if exc is not None:
            self._settle(exc)
        self._read_on()

    def end(self) -> None:
        self.over = True
        self._transport.abort()

    def _read_on(self) -> None:
        if self._reading is None:  # nobody asked for what came
            self.end()
            return
        try:
            next(self._reading)
        except StopIteration as done:
            answer, lasting = done.value
            self._settle((answer, lasting and not self.incoming.data))
        except Exception as error:
            self._settle(error)

    def _settle(self, outcome: Any) -> None:
        answered, self._answered, self._reading = self._answered, None, None
        if answered is None or answered.done():
            return
        if isinstance(outcome, Exception):
            answered.set_exception(outcome)
        else:
            answered.set_result(outcome)
