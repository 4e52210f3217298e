"""Listening sockets: a Unix socket with exact permissions in a directory of its own, and a TCP one."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from ca.errors import ConfigError, FailedPrecondition
from ca.runtime.files import make_private_dir

MAX_UNIX_PATH_BYTES = 107
BACKLOG = 4096


def listen_unix(path: str | os.PathLike[str], *, mode: int, dir_mode: int, gid: int | None) -> socket.socket:
    """A listening Unix socket with exactly `mode`; its directory is made with `dir_mode`, or checked.

    With `gid` both belong to that group. A socket file that nobody listens on is replaced.
    Raises ConfigError (path too long), FailedPrecondition (ADDRESS_IN_USE, NOT_PRIVATE).
    """
    name = os.fspath(path)
    if len(os.fsencode(name)) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"socket path `{name}` is longer than {MAX_UNIX_PATH_BYTES} bytes")
    directory = make_private_dir(Path(name).parent, dir_mode)
    _remove_stale(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(name)
    except OSError as error:
        sock.close()
        raise FailedPrecondition(f"cannot listen on `{name}`: {error.strerror}", reason="ADDRESS_IN_USE") from error
    finally:
        os.umask(before)
    if gid is not None:
        os.chown(directory, -1, gid)
        os.chown(name, -1, gid)
    os.chmod(name, mode)
    sock.listen(BACKLOG)
    return sock


def _remove_stale(name: str) -> None:
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FailedPrecondition(f"`{name}` exists and is not a socket", reason="ADDRESS_IN_USE")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            os.unlink(name)
            return
        except OSError as error:
            raise FailedPrecondition(f"cannot use `{name}`: {error.strerror}", reason="ADDRESS_IN_USE") from error
    raise FailedPrecondition(
        f"somebody listens on `{name}` already", reason="ADDRESS_IN_USE", hint="stop the other process first"
    )


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket, shared with nobody. Raises FailedPrecondition (ADDRESS_IN_USE, ADDRESS_UNAVAILABLE)."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise FailedPrecondition(f"cannot resolve `{host}`: {error.strerror}", reason="ADDRESS_UNAVAILABLE") from error
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise FailedPrecondition(
            f"cannot listen on {host}:{port}: {error.strerror}",
            reason="ADDRESS_IN_USE",
            hint="choose another port, or stop whoever has it (`ss -ltnp` tells)",
        ) from error
    return sock
