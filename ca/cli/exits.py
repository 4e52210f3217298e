"""Exit codes, and how an error is told: on stderr, with its reason and a hint.

0 done · 1 failed · 2 usage, configuration or malformed input · 3 not found or denied.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import NoReturn

import typer

from ca.cli.output import plain
from ca.errors import STATUS, BurgeeError, Code


class Exit(IntEnum):
    """What the programs exit with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    CHANGES = 4
    """Of `caadmin policy plan` alone: there is something to do."""


EXPLAINED = "Exit codes: 0 done; 1 failed; 2 usage, configuration or malformed input; 3 not found or denied."

_BY_CODE = {
    Code.INVALID_ARGUMENT: Exit.USAGE,
    Code.NOT_FOUND: Exit.REFUSED,
    Code.PERMISSION_DENIED: Exit.REFUSED,
    Code.UNAUTHENTICATED: Exit.REFUSED,
}
_CODES = {number: code for code, (number, _) in STATUS.items()}


def exit_of(code: Code) -> Exit:
    """The exit code for an error of this kind."""
    return _BY_CODE.get(code, Exit.FAILED)


def code_name(number: int) -> str:
    """`OK`, or the name of a gRPC status number."""
    if number == 0:
        return "OK"
    return _CODES[number].value if number in _CODES else f"Code{number}"


def exit_of_batch(numbers: Iterable[int]) -> Exit:
    """For the gRPC status numbers of a batch's items: 0 if all went well, what the failures agree on, else 1."""
    failed = {exit_of(_CODES[n]) if n in _CODES else Exit.FAILED for n in numbers if n != 0}
    if not failed:
        return Exit.OK
    return failed.pop() if len(failed) == 1 else Exit.FAILED


def show_error(error: BurgeeError) -> None:
    """`error: detail (REASON)` and the hint, on stderr; before them, each thing that is wrong, where an error has
    `lines`."""
    for line in getattr(error, "lines", ()):
        print(plain(line), file=sys.stderr)
    print(f"error: {plain(error.detail)} ({plain(error.reason)})", file=sys.stderr)
    if error.hint:
        print(f"hint: {plain(error.hint)}", file=sys.stderr)


def leave(code: Exit) -> None:
    """End the program with `code`, unless all is well."""
    if code is not Exit.OK:
        raise typer.Exit(code)


def run(app: typer.Typer, name: str) -> NoReturn:
    """Run a program's command line and exit: the one place where errors become exit codes."""
    try:
        app(prog_name=name)
    except BurgeeError as error:
        show_error(error)
        sys.exit(exit_of(error.code))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        sys.exit(Exit.FAILED)
    sys.exit(Exit.OK)
