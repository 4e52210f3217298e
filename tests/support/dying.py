"""A server or agent that kills itself with SIGKILL at a named step, once: `… dying server|agent STEP --config FILE`.

A step is `module:Class.method` (or `module:function`), and `before` or `after` it; `after 2 …` is the second call. The
file `died` beside the
configuration says that it has happened: the next start is an ordinary one.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = {"server": "ca.serve", "agent": "sds.agent"}


def die_at(step: str, mark: Path) -> None:
    """Replace the step's function by one that ends this process."""
    when, *count, place = step.split()
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    inner = getattr(owner, name)

    left = int(count[0]) if count else 1

    def die() -> None:
        nonlocal left
        left -= 1
        if not left:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, _wrapped(inner, before=when == "before", die=die))


def _wrapped(inner: Callable[..., Any], *, before: bool, die: Callable[[], None]) -> Callable[..., Any]:
    async def dying(*arguments: Any, **named: Any) -> Any:
        if before:
            die()
        result = await inner(*arguments, **named)
        if not before:
            die()
        return result

    def dying_at_once(*arguments: Any, **named: Any) -> Any:
        if before:
            die()
        result = inner(*arguments, **named)
        if not before:
            die()
        return result

    return dying if inspect.iscoroutinefunction(inner) else dying_at_once


if __name__ == "__main__":
    _, program, at, *arguments = sys.argv
    died = Path(arguments[1]).parent / "died"
    run = importlib.import_module(PROGRAMS[program]).main
    if not died.exists():
        die_at(at, died)
    sys.exit(run(arguments))
