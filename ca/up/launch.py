"""Becomes another program that cannot outlive its supervisor: `python -I -S launch.py PARENT UID PROGRAM ARGUMENT…`.

PARENT is the supervisor's pid; UID is a number or `-` for no change; PROGRAM is a path, ARGUMENT… is its argv from
argv[0] on. A program of its own rather than a `preexec_fn`: forking a process that uses gRPC runs gRPC's fork
handlers, which abort the child now and then; this way the supervisor only ever spawns with vfork.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
NOT_STARTED = 126
"""Exit code when the program could not be started; what was wrong is on stderr."""


def main() -> None:
    """Never returns."""
    parent, uid, program, *arguments = sys.argv[1:]
    try:
        descriptor = os.open(program, os.O_RDONLY)  # close-on-exec, as all of Python's descriptors
        if uid != "-":
            become(int(uid))
        die_with(int(parent))
        _execute(program, descriptor, arguments)
    except OSError as error:
        print(f"cannot start `{program}`: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_STARTED)


def become(uid: int) -> None:
    """Be `uid`, with the gid of the same number and no other groups. Raises OSError."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def die_with(parent: int) -> None:
    """Be killed when `parent` goes. PR_SET_PDEATHSIG(2const): a change of uid clears it, execve keeps it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _execute(program: str, descriptor: int, arguments: list[str]) -> None:
    try:
        os.execv(program, arguments)  # noqa: S606 - an argument list is what keeps a shell out
    except PermissionError:  # a directory on the way is closed to the new uid, such as a checkout in /root
        os.execve(descriptor, arguments, dict(os.environ))  # noqa: S606 - as above


if __name__ == "__main__":
    main()
