"""A 32-byte secret in the kernel's user keyring (keyrings(7)): it never reaches a disk and a reboot forgets it.

Every process of the same user can read it, as it could read the agent's memory. glibc has no wrapper for these
calls, so they are made by number.
"""

from __future__ import annotations

import ctypes
import os
import platform

SECRET_BYTES = 32
_NUMBERS = {"x86_64": (248, 250), "aarch64": (217, 219), "riscv64": (217, 219)}  # add_key, keyctl
_PROCESS_KEYRING, _USER_KEYRING = -2, -4
_SETPERM, _LINK, _SEARCH, _READ, _INVALIDATE = 5, 8, 10, 11, 21
_POSSESSOR_AND_USER_ALL = 0x3F3F0000


def read_or_make(description: str) -> bytes | None:
    """The secret of this description, made when there is none; None where the kernel or a sandbox has no keyring."""
    try:
        return _read(_find(description))
    except OSError:
        pass
    try:
        return _make(description)
    except OSError:
        return None


def forget(description: str) -> None:
    """Destroys the secret, if there is one."""
    try:
        _keyctl(_INVALIDATE, _find(description), 0, 0)
    except OSError:
        pass  # none there, or no keyring at all


def _make(description: str) -> bytes:
    secret = os.urandom(SECRET_BYTES)
    # Through the process keyring first: a session keyring that does not link to the user's (systemd's default) leaves
    # a fresh key there unpossessed, and its permissions could not be set.
    serial = _call(
        _numbers()[0],
        b"user",
        description.encode(),
        secret,
        ctypes.c_size_t(len(secret)),
        ctypes.c_long(_PROCESS_KEYRING),
    )
    _keyctl(_SETPERM, serial, _POSSESSOR_AND_USER_ALL, 0)
    _keyctl(_LINK, serial, _USER_KEYRING, 0)
    return _read(serial)


def _find(description: str) -> int:
    return _call(
        _numbers()[1],
        ctypes.c_long(_SEARCH),
        ctypes.c_long(_USER_KEYRING),
        b"user",
        description.encode(),
        ctypes.c_long(0),
    )


def _read(serial: int) -> bytes:
    buffer = ctypes.create_string_buffer(SECRET_BYTES)
    length = _call(
        _numbers()[1],
        ctypes.c_long(_READ),
        ctypes.c_long(serial),
        buffer,
        ctypes.c_size_t(SECRET_BYTES),
        ctypes.c_long(0),
    )
    if length != SECRET_BYTES:
        raise OSError(f"a key of {length} bytes is not ours")
    return buffer.raw


def _keyctl(operation: int, first: int, second: int, third: int) -> int:
    return _call(_numbers()[1], *(ctypes.c_long(value) for value in (operation, first, second, third)))


def _numbers() -> tuple[int, int]:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(f"no system call numbers for {platform.machine()}")
    return numbers


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
