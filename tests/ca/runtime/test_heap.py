"""The allocator of a program whose threads never run at a time."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, sys, threading
from ca.runtime import memory
if sys.argv[1] == "shared":
    memory.share_arena()
meet, kept = threading.Barrier(5), []
def hold():
    kept.append([bytearray(4000) for _ in range(100)])
    meet.wait()
threads = [threading.Thread(target=hold) for _ in range(4)]
[thread.start() for thread in threads]
meet.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
memory.trim()
"""


def _heaps(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return done.stdout.count("<heap nr=")


def test_threads_share_one_heap() -> None:
    assert _heaps("shared") == 1
    assert _heaps("each their own") > 1
