"""One connection to a D-Bus message bus, for calls that wait for their answers. Needs jeepney; blocks.

jeepney makes and reads the messages. The socket is ours, so that every step has an end and every answer a size.
"""

from __future__ import annotations

import array
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_method_call
from jeepney.auth import BEGIN, Authenticator

MAX_MESSAGE_BYTES = 64 * 1024


def address(path: str, *, name: str, interface: str) -> DBusAddress:
    """An object of whoever has the bus name."""
    return DBusAddress(path, bus_name=name, interface=interface)


BUS = address("/org/freedesktop/DBus", name="org.freedesktop.DBus", interface="org.freedesktop.DBus")


class CallFailed(Exception):
    """The called one answered with an error. `name` is D-Bus's, such as org.freedesktop.DBus.Error.UnknownMethod."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Connection:
    """Authenticated and greeted. `name` is what the bus calls us.

    Raises OSError where nothing answers in time, ValueError for what is no D-Bus.
    """

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._serials = count(1)
        self._parser = Parser()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._end = time.monotonic() + timeout_seconds
            self._wait_no_longer()
            self._socket.connect(str(path))
            self._authenticate()
            self.name = str(self.call(BUS, "Hello")[0])
        except BaseException:
            self.close()
            raise

    def call(self, to: DBusAddress, method: str, signature: str | None = None, *body: Any) -> tuple[Any, ...]:
        """What the method returns. File descriptors (`h`) are sent with it. Raises CallFailed, OSError, ValueError.

        The bus lets nobody answer but the one who was asked.
        """
        self._end = time.monotonic() + self._timeout
        serial, descriptors = next(self._serials), array.array("i")
        message = new_method_call(to, method, signature, body)
        data = message.serialise(serial=serial, fds=descriptors)
        self._send(data, descriptors)
        while True:
            answer = self._receive()
            if answer.header.fields.get(HeaderFields.reply_serial) != serial:
                continue  # a signal to all
            if answer.header.message_type is MessageType.error:
                text = str(answer.body[0]) if answer.body else ""
                raise CallFailed(str(answer.header.fields.get(HeaderFields.error_name, "")), text)
            return tuple(answer.body)

    def close(self) -> None:
        """Harmless when done twice; whoever waits for an answer in another thread meets an OSError."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was not connected
        self._socket.close()

    def _authenticate(self) -> None:
        dialogue = Authenticator(enable_fds=True, inc_null_byte=False)
        self._send(b"\0")
        for line in dialogue:
            self._send(line)
            dialogue.feed(self._read(1024))
        self._send(BEGIN)

    def _send(self, data: bytes, descriptors: array.array[int] | None = None) -> None:
        self._wait_no_longer()
        if descriptors:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
            data = data[self._socket.sendmsg([data], rights) :]
        self._socket.sendall(data)

    def _receive(self) -> Message:
        while True:
            try:
                message = self._parser.get_next_message()
                wanted = self._parser.bytes_desired()
            except Exception as error:  # jeepney lets through whatever its parts raise
                raise ValueError("this is no D-Bus message") from error
            if message is not None:
                return message
            if wanted > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message with more than {MAX_MESSAGE_BYTES} bytes")
            self._parser.add_data(self._read(wanted))

    def _read(self, size: int) -> bytes:
        self._wait_no_longer()
        data = self._socket.recv(size)
        if not data:
            raise ConnectionResetError("the bus closed the connection")
        return data

    def _wait_no_longer(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(left)
