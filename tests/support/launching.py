"""Commands that start a program under a condition of its own, by util-linux's or the shell's help.

Never a `preexec_fn`: Python that runs between fork and exec hangs or aborts where a thread of gRPC's held a lock.
Without one, and without `user`, Python spawns by vfork, and gRPC's fork handlers do not run either.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path

Command = Sequence[str | os.PathLike[str]]


def dying_with_us(command: Command, *, signal: str = "KILL", user: pwd.struct_passwd | None = None) -> list[str]:
    """It gets the signal when we end, however that is; as that user, if one is given."""
    whom = [] if user is None else [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *whom, "--pdeathsig", signal, "--", *map(os.fspath, command)]


def limited(command: Command, **limits: int) -> list[str]:
    """With soft and hard limits by prlimit(1)'s names: `nofile=64`."""
    return ["prlimit", *(f"--{name}={value}" for name, value in limits.items()), "--", *map(os.fspath, command)]


def in_cgroup(command: Command, cgroup: Path) -> list[str]:
    """Below that directory of the cgroup file system."""
    enter = 'echo $$ > "$0" && exec "$@"'
    return ["sh", "-c", enter, str(cgroup / "cgroup.procs"), *map(os.fspath, command)]
