"""Files that node attestors read anew each time: certificates and keys that somebody else renews."""

from __future__ import annotations

from pathlib import Path

from ca.errors import InvalidArgument

MAX_FILE_BYTES = 1 << 20


def read_bounded(path: Path) -> bytes:
    """Raises OSError, or InvalidArgument for what is too large to be meant."""
    with path.open("rb") as file:
        found = file.read(MAX_FILE_BYTES + 1)
    if len(found) > MAX_FILE_BYTES:
        raise InvalidArgument(f"`{path}` is larger than {MAX_FILE_BYTES} bytes", reason="FILE_TOO_LARGE")
    return found
