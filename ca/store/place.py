"""Whether an SQLite file still has its name: what is written to one that was removed or replaced is lost at the end."""

from __future__ import annotations

import os
from pathlib import Path

from ca.errors import Unavailable


class Place:
    """Remembers which file was opened. `path` is None for a database that is no file of ours."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._opened: tuple[int, int] | None = None
        self._lost = False

    def opened(self) -> None:
        """The file is there and in use. Raises OSError."""
        if self._path is not None:
            self._opened = _file(self._path)

    def look(self) -> None:
        """Looks at the file system. Blocks. Raises Unavailable (STORE_LOST)."""
        if self._path is None or self._opened is None:
            return
        try:
            self._lost = _file(self._path) != self._opened
        except OSError:
            self._lost = True
        self.refuse_lost()

    def refuse_lost(self) -> None:
        """By what was seen last. Raises Unavailable (STORE_LOST)."""
        if self._lost:
            raise Unavailable(
                f"the store `{self._path}` was removed or replaced while the server has it open",
                reason="STORE_LOST",
                hint="stop the server, put the file back or restore it from a backup, and start the server again",
            )


def _file(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
