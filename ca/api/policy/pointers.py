"""JSON pointers (RFC 6901)."""

from __future__ import annotations

import re
from collections.abc import Iterable

_STEP = re.compile(r"(?:[^~]|~[01])*")


def steps_of(pointer: str) -> list[str]:
    """`/a/b~1c` → ["a", "b/c"]; "" is the whole document. Raises ValueError."""
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise ValueError("a JSON pointer is empty or begins with `/`")
    steps = pointer[1:].split("/")
    if not all(_STEP.fullmatch(step) for step in steps):
        raise ValueError("`~` is written `~0` and `/` is written `~1` in a JSON pointer")
    return [step.replace("~1", "/").replace("~0", "~") for step in steps]


def pointer_of(steps: Iterable[str | int]) -> str:
    """The reverse."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
