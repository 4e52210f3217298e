"""The agent's data directory: one agent at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ca.errors import FailedPrecondition
from ca.runtime.files import make_private_dir


def take_data_dir(data_dir: Path) -> int:
    """The data directory is ours alone while this descriptor is open. Raises FailedPrecondition (AGENT_RUNNING)."""
    try:
        make_private_dir(data_dir)
        fd = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot use `{data_dir}`: {error.strerror}",
            reason="STATE_NOT_WRITABLE",
            hint="`data_dir` must belong to the agent's user",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise FailedPrecondition(
            f"another agent uses `{data_dir}`",
            reason="AGENT_RUNNING",
            hint="stop it first, or give each agent its own `data_dir`",
        ) from None
    return fd
