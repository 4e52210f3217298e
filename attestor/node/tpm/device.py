"""The way to a TPM: a character device of the kernel, or a Unix socket on which a software TPM listens. Blocks."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path
from typing import Protocol, Self

from ca.errors import FailedPrecondition, Unavailable

MAX_RESPONSE_BYTES = 4096
HEADER_BYTES = 10
COMMAND_TIMEOUT_SECONDS = 120.0
"""Of a software TPM. The kernel bounds a real one's commands itself; making an RSA key may take a minute there."""

_DEVICES = (re.compile(r"tpmrm\d+"), re.compile(r"tpm\d+"))
"""The kernel's resource manager first: behind it nobody meets another's keys, and what is left over goes by itself."""


class _Channel(Protocol):
    def exchange(self, command: bytes) -> bytes: ...

    def close(self) -> None: ...


class Device:
    """An open TPM: a command in, its response out. Use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._channel = _open(path)

    def exchange(self, command: bytes) -> bytes:
        """Raises Unavailable TPM_UNAVAILABLE when nothing (whole) comes back."""
        try:
            return self._channel.exchange(command)
        except OSError as error:
            raise Unavailable(
                f"the TPM at `{self.path}` does not answer: {error.strerror or error}", reason="TPM_UNAVAILABLE"
            ) from error

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_device(directory: Path = Path("/dev")) -> Path:
    """The machine's only TPM, as SPIRE's agents find it. Raises FailedPrecondition TPM_MISSING."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        names = []
    for pattern in _DEVICES:
        found = [name for name in names if pattern.fullmatch(name)]
        if len(found) > 1:
            raise FailedPrecondition(
                f"there is more than one TPM: {', '.join(found)}",
                reason="TPM_MISSING",
                hint="say which one in `tpm_device_path`",
            )
        if found:
            return directory / found[0]
    raise FailedPrecondition(
        f"there is no TPM 2.0 in `{directory}`",
        reason="TPM_MISSING",
        hint="enable it in the firmware or give the virtual machine one, and load the kernel's driver; a container "
        "needs the device /dev/tpmrm0",
    )


def _open(path: Path) -> _Channel:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISSOCK(mode):
            return _Socket(path)
        if stat.S_ISCHR(mode):
            return _File(path)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot open the TPM at `{path}`: {error.strerror or error}",
            reason="TPM_MISSING",
            hint="does the path exist, may this user open it (group tss), and is nobody else using it?",
        ) from error
    raise FailedPrecondition(
        f"`{path}` is neither a character device nor a Unix socket",
        reason="TPM_MISSING",
        hint="mostly it is /dev/tpmrm0",
    )


class _File:
    """One write is one command, one read its response."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def exchange(self, command: bytes) -> bytes:
        os.write(self._fd, command)
        return os.read(self._fd, MAX_RESPONSE_BYTES)

    def close(self) -> None:
        os.close(self._fd)


class _Socket:
    """A stream of commands and responses, whose headers tell their lengths."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(COMMAND_TIMEOUT_SECONDS)
            self._socket.connect(os.fspath(path))
        except OSError:
            self._socket.close()
            raise

    def exchange(self, command: bytes) -> bytes:
        self._socket.sendall(command)
        header = self._read(HEADER_BYTES)
        size = int.from_bytes(header[2:6], "big")
        if not HEADER_BYTES <= size <= MAX_RESPONSE_BYTES:
            raise OSError("a response of impossible length")
        return header + self._read(size - HEADER_BYTES)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise OSError("the connection was closed")
            data += more
        return data

    def close(self) -> None:
        self._socket.close()
