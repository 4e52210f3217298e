"""Asks before something is lost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ca.cli.output import plain
from ca.errors import FailedPrecondition

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, even where something would be lost.")]


def confirm(losses: Sequence[str], *, yes: bool) -> None:
    """Tell what would be lost, on stderr, and ask; without losses, or with `yes`, nothing is asked.

    Where nobody can answer the answer is no. Raises FailedPrecondition (NOT_CONFIRMED).
    """
    if yes or not losses:
        return
    print("this would be lost:", *(f"  {plain(loss)}" for loss in losses), sep="\n", file=sys.stderr)
    if not sys.stdin.isatty():
        raise FailedPrecondition(
            "nothing was changed: nobody is there to be asked", reason="NOT_CONFIRMED", hint="--yes does it anyway"
        )
    print("go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise FailedPrecondition("nothing was changed", reason="NOT_CONFIRMED")
