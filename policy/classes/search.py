"""Looks for a request that some rows match and others do not, and proves where there is none.

An example of what is still possible is tried on the index that decides. Where a row matches that must not, what is
still possible is divided along that row's questions, so that each division is of use; what has no request is never
looked at again. The work is bounded: beyond that nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from policy.classes.boxes import Box
from policy.classes.rows import Row
from policy.classes.texts import Work
from policy.model import Request

Objection = Callable[[Request, Box], Row | None]
"""A row that must not match and does, on a request that is the box's example."""

Choice = Callable[[Box], Iterable[Row]]
"""Rows of which one must match something in a box; those that cannot may be left out."""


def search(boxes: Iterable[Box], objection: Objection, work: Work, *, http: bool) -> Box | None:
    """A part of one of the boxes whose example nothing objects to; None where every request is objected to."""
    for first in boxes:
        waiting = [first]
        while waiting:
            work.spend(4)
            box = waiting.pop()
            row = objection(box.request(http=http), box)
            if row is None:
                return box
            waiting.extend(apart(box, row))
    return None


TRIES, PARTS = 12, 3


def remaining(box: Box, objection: Objection, work: Work, *, http: bool) -> list[Box]:
    """A box without what a few rows object to at once, where no more than a few parts are left of it: what everybody is
    denied need not be looked for in each row that allows."""
    waiting, left = [box], []
    for _ in range(TRIES):
        if not waiting:
            break
        work.spend(4)
        part = waiting.pop()
        row = objection(part.request(http=http), part)
        if row is None:
            left.append(part)
        else:
            waiting.extend(apart(part, row))
    found = left + waiting
    return found if len(found) <= PARTS else [box]


def apart(box: Box, row: Row) -> Iterator[Box]:
    """What a row does not match of a box, in parts that have nothing in common."""
    for literal in row.literals:
        without = box.having(literal, holds=False)
        if without is not None:
            yield without
        inside = box.having(literal)
        if inside is None:
            return
        box = inside


def crossed(box: Box, choices: Sequence[Choice], work: Work) -> Iterator[Box]:
    """The parts of a box in which one row of each choice matches."""
    if not choices:
        yield box
        return
    for row in choices[0](box):
        work.spend()
        part = box.having_all(row.each())
        if part is not None:
            yield from crossed(part, choices[1:], work)
