"""The one error of `burgee up`: which part failed, why, and the end of its log."""

from __future__ import annotations

from collections.abc import Sequence

from ca.errors import Unavailable


class PartFailed(Unavailable):
    """A part did not come up or went away. `log_tail` holds the last lines it wrote, oldest first."""

    reason = "PART_FAILED"

    def __init__(self, part: str, detail: str, *, log_tail: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.part = part
        self.log_tail = tuple(log_tail)
