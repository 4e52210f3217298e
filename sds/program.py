"""Which program a process runs, by the file that it was loaded from.

The agent's own loop asks this for every connection, and the file may lie on a file system that does not answer: a
FUSE mount of the caller, a server that is gone. So the kernel is asked for what it has at hand (statx(2),
AT_STATX_DONT_SYNC), which `os.stat` cannot be told.
"""

from __future__ import annotations

import ctypes
import os
import struct

Program = tuple[int, int]
"""(device, inode)."""

HIDDEN: Program = (0, 0)
"""The program of a process into which the agent may not look, or that is gone; no file has these numbers."""

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_INO = 0x100
_INODE_AT = 32
_FIELDS = struct.Struct("=Q96xII")
"""struct statx from stx_ino on: the inode, and at its end the device's major and minor number."""

_Buffer = ctypes.c_char * 256
_statx = ctypes.CDLL(None).statx
_statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]


def program_of_pid(pid: int) -> Program:
    """Of whoever has this pid now: the caller's only if the caller lives still afterwards."""
    return _program(_AT_FDCWD, b"/proc/%d/exe" % pid)


def program_of(proc: int) -> Program:
    """`proc` is a directory descriptor of /proc/PID."""
    return _program(proc, b"exe")


def _program(directory: int, path: bytes) -> Program:
    buffer = _Buffer()
    if _statx(directory, path, _AT_STATX_DONT_SYNC, _STATX_INO, buffer):
        return HIDDEN
    inode, major, minor = _FIELDS.unpack_from(buffer, _INODE_AT)
    return os.makedev(major, minor), inode
