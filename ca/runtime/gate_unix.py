"""Listening sockets: a Unix socket with exact permissions in a directory of its own, and a TCP one."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
from pathlib import Path

from ca.errors import ConfigError, FailedPrecondition
from ca.runtime.files import make_private_dir

MAX_UNIX_PATH_BYTES = 107
BACKLOG = 4096


def listen_unix(path: str | os.PathLike[str], *, mode: int, dir_mode: int, gid: int | None) -> socket.socket:
    """A listening Unix socket with exactly `mode`; its directory is made with `dir_mode`, or checked.

    With `gid` both belong to that group. A socket file that nobody listens on is replaced. The name is there only when
    whoever finds it can connect: until then the socket has another one beside it.
    Raises ConfigError (path too long), FailedPrecondition (ADDRESS_IN_USE, ADDRESS_UNAVAILABLE, NOT_PRIVATE).
    """
    target = Path(path)
    scratch = target.parent / f".{secrets.token_hex(3)}"
    if max(len(os.fsencode(target)), len(os.fsencode(scratch))) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"socket path `{target}` is longer than {MAX_UNIX_PATH_BYTES} bytes")
    directory = make_private_dir(target.parent, dir_mode)
    if stands_stale(str(target)):
        os.unlink(target)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _bind(sock, scratch, mode)
        if gid is not None:
            os.chown(directory, -1, gid)
            os.chown(scratch, -1, gid)
        os.chmod(scratch, mode)
        sock.listen(BACKLOG)
        os.link(scratch, target)  # unlike a rename it replaces nobody's
    except OSError as error:
        sock.close()
        reason = "ADDRESS_IN_USE" if error.errno == errno.EEXIST else "ADDRESS_UNAVAILABLE"
        raise FailedPrecondition(f"cannot listen on `{target}`: {error.strerror}", reason=reason) from error
    finally:
        scratch.unlink(missing_ok=True)
    return sock


def _bind(sock: socket.socket, path: Path, mode: int) -> None:
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)


def stands_stale(name: str) -> bool:
    """Whether a socket file is there that nobody listens on. Raises FailedPrecondition (ADDRESS_IN_USE) for anything
    else that is."""
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise FailedPrecondition(f"`{name}` exists and is not a socket", reason="ADDRESS_IN_USE")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            return True
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
