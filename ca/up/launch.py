"""Becomes another program that cannot outlive its supervisor.

`python -I -S launch.py PARENT UID HOME PROGRAM ARGUMENT…`: PARENT is the supervisor's pid; UID is a number or `-` for
no change; HOME is a directory, for a program that is confined (`confine`), or `-`; PROGRAM is a path, ARGUMENT… is its
argv from argv[0] on. A program of its own rather than a `preexec_fn`: forking a process that uses gRPC runs gRPC's fork
handlers, which abort the child now and then; this way the supervisor only ever spawns with vfork.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
NOT_STARTED = 126
"""Exit code when the program could not be started; what was wrong is on stderr."""


def main() -> None:
    """Never returns."""
    parent, uid, home, program, *arguments = sys.argv[1:]
    try:
        descriptor = os.open(program, os.O_RDONLY)  # close-on-exec, as all of Python's descriptors
        if uid != "-":
            become(int(uid))
        environment = dict(os.environ)
        if home != "-":
            environment = confine(home)
        die_with(int(parent))
        _execute(program, descriptor, arguments, environment)
    except OSError as error:
        print(f"cannot start `{program}`: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_STARTED)


def become(uid: int) -> None:
    """Be `uid`, with the gid of the same number and no other groups. Raises OSError."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def confine(home: str) -> dict[str, str]:
    """Never gain privileges by executing a program, such as a set-user-ID one; PR_SET_NO_NEW_PRIVS(2const): for good,
    for children too. Returns the environment to go on with, in which nothing is inherited. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return {"PATH": os.defpath, "HOME": home}


def die_with(parent: int) -> None:
    """Be killed when `parent` goes. PR_SET_PDEATHSIG(2const): a change of uid clears it, execve keeps it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _execute(program: str, descriptor: int, arguments: list[str], environment: dict[str, str]) -> None:
    try:
        os.execve(program, arguments, environment)  # noqa: S606 - an argument list is what keeps a shell out
    except PermissionError:  # a directory on the way is closed to the new uid, such as a checkout in /root
        os.execve(descriptor, arguments, environment)  # noqa: S606 - as above


if __name__ == "__main__":
    main()
