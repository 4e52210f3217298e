"""Where a program's private sockets are: in a directory that is ours alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from ca.runtime.files import make_private_dir

SOCKET_PATH_BYTES = 100
"""The kernel's limit is 107."""


def private_socket(data_dir: Path, name: str, stack: AsyncExitStack) -> Path:
    """A free path in the data directory; elsewhere if the name of that is too long. `stack` removes what was made.

    What is left there of a program that was killed is removed: the store's lock says that none is running.
    """
    directory = data_dir / "private"
    if len(os.fsencode(directory / name)) > SOCKET_PATH_BYTES:
        directory = Path(tempfile.mkdtemp(prefix="burgee-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
    make_private_dir(directory)
    socket = directory / name
    socket.unlink(missing_ok=True)
    return socket
