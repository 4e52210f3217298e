"""Small files of a process in /proc, read whole or not at all."""

from __future__ import annotations

import os

from ca.errors import Denied, Unauthenticated, Unavailable

_CHUNK = 64 * 1024


def read_proc_file(proc: int, name: str, *, max_bytes: int) -> str:
    """`proc` is a directory descriptor of /proc/PID. What is no UTF-8 is escaped: different bytes stay different.

    Raises Unauthenticated when the process is gone, Denied when the file is larger than it may be: part of it could
    say something else than the whole.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            content = _read(descriptor, max_bytes)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Unauthenticated("the calling process is gone", reason="CALLER_GONE") from error
    except OSError as error:
        raise Unavailable(f"cannot read the caller's /proc entry: {error.strerror}", reason="PROC_STATUS") from error
    if len(content) > max_bytes:
        raise Denied(f"the caller's /proc/PID/{name} has more than {max_bytes} bytes", reason="PROC_FILE_TOO_LARGE")
    return content.decode("utf-8", "backslashreplace")


def lines_of(text: str) -> list[str]:
    """What the kernel ended with a line feed, and nothing else is a line: it lets whoever makes a cgroup or a mount put
    every other character at which `str.splitlines` would break into its name."""
    return text.split("\n")


def _read(descriptor: int, max_bytes: int) -> bytes:
    content = bytearray()
    while len(content) <= max_bytes and (chunk := os.read(descriptor, _CHUNK)):
        content += chunk
    return bytes(content)
