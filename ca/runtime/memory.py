"""Keys in memory: kept from core files, and from other processes of the same user (PR_SET_DUMPABLE(2const)).

And memory itself: how much of it glibc's allocator holds for nobody.
"""

from __future__ import annotations

import ctypes
import os

from ca.runtime import log

_PR_SET_DUMPABLE = 4
_M_ARENA_MAX = -8
_log = log.get("memory")


def keep_private() -> bool:
    """From now on this process leaves no core file, and only root (CAP_SYS_PTRACE) may trace it or read its memory.

    False where the kernel refuses; that is logged and no reason not to run. What it begins by execve(2) is as any
    other program again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        return True
    words = os.strerror(ctypes.get_errno())
    _log.warning("other processes of this user can read this one's memory", reason="MEMORY_EXPOSED", detail=words)
    return False


def share_arena() -> None:
    """All threads allocate from one heap (mallopt(3)). One of its own for each is for threads that run at a time, which
    Python's do not, and each keeps what it once held. To be called before there are threads; harmless elsewhere.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give back to the system what is free inside of the heap (malloc_trim(3)): after a start, what that needed."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
