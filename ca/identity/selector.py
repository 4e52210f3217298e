"""Selectors: facts about a node or a workload, `type:value`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ca.errors import InvalidArgument
from ca.identity.text import quote

PROGRAM_ALONE_REASON = "SELECTORS_PROGRAM_ALONE"
"""The reason code for selectors of which `program_alone` holds."""


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """`type` has no colon and is not empty; `value` is not empty and may hold colons.

    Raises InvalidArgument when made from anything else.
    """

    type: str
    value: str

    def __post_init__(self) -> None:
        if not self.type:
            raise InvalidArgument("missing selector type", reason="SELECTOR_TYPE_MISSING")
        if ":" in self.type:
            raise InvalidArgument(f"selector type contains ':': {quote(self.type)}", reason="SELECTOR_TYPE_COLON")
        if not self.value:
            raise InvalidArgument("missing selector value", reason="SELECTOR_VALUE_MISSING")

    @classmethod
    def parse(cls, text: str) -> Selector:
        """From `type:value`, split at the first colon. Raises InvalidArgument."""
        kind, colon, value = text.partition(":")
        if not colon:
            raise InvalidArgument(
                f"selector {quote(text)} has no colon",
                reason="SELECTOR_NO_COLON",
                hint="a selector looks like `unix:uid:1000`",
            )
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"


def program_alone(selectors: Iterable[Selector]) -> bool:
    """Whether they tell which program a process runs and nothing of who runs it (`unix:path` and `unix:sha256` alone).

    Every local user who can execute the program can have what they earn: by beginning it after having connected, by
    preloading code of his own into it, by tracing it.
    """
    given = list(selectors)
    return bool(given) and all(s.type == "unix" and s.value.startswith(("path:", "sha256:")) for s in given)
