"""What one set of policies decides otherwise than another, for one target: row by row, each with a request.

A verdict can only change where a row matches that one of the two has not. So for each such row a request is looked for
that it matches, that the one set allows and the other does not; where there is none, the row changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from policy.classes.boxes import Box
from policy.classes.frames import Frame
from policy.classes.rows import EVERYTHING, Ref, Row, Side, only_in
from policy.classes.search import Objection, crossed
from policy.classes.texts import Undecided
from policy.model import Request

Sides = Sequence[Side]


class Kind(StrEnum):
    """What changes."""

    ALLOWED = "allowed"
    DENIED = "denied"
    ASKED = "asked"
    """Allowed before and after, and a provider must agree now."""
    UNASKED = "unasked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Requests of a row whose verdict changes. `removed`: the row is one of the policies before. `box` None: it was not
    decided whether there is any, and `why`."""

    kind: Kind
    row: Row
    removed: bool
    box: Box | None
    frame: Frame
    provider: str = ""
    why: str = ""


def shifts(frame: Frame, before: Sides, after: Sides) -> Iterator[Shift]:
    """Everything that changes from one to the other."""
    yield from _opened(frame, before, after)
    for shift in _opened(frame, after, before):
        yield replace(shift, kind=Kind.DENIED, removed=not shift.removed)
    yield from _asked(frame, before, after)
    for shift in _asked(frame, after, before):
        yield replace(shift, kind=Kind.UNASKED, removed=not shift.removed)


def _opened(frame: Frame, before: Sides, after: Sides) -> Iterator[Shift]:
    """What all of `after` allow, and one of `before` does not; of none, nobody is allowed anything."""
    kept = {id(side.judge) for side in after}
    if not after:
        return
    for side in before:
        if id(side.judge) not in kept:
            yield from _allowed_by_more(frame, side, after)
            yield from _denied_by_less(frame, side, after)
    if not before:
        yield from _allowed_by_more(frame, None, after)


def _allowed_by_more(frame: Frame, side: Side | None, after: Sides) -> Iterator[Shift]:
    first, *rest = after
    if side is not None and side.opens:
        return

    def objection(request: Request, box: Box) -> Row | None:
        return denial(after, request, box) or (side.allowance(request, box) if side is not None else None)

    rows = rows_of(first, only_in(first.allowing, side.allowing if side is not None else ()))
    yield from _each(frame, [(EVERYTHING, "")] if first.opens else rows, rest, objection, removed=False)


def _denied_by_less(frame: Frame, side: Side, after: Sides) -> Iterator[Shift]:
    def objection(request: Request, box: Box) -> Row | None:
        return denial(after, request, box)

    rows = rows_of(side, only_in(side.denying, after[0].denying))
    yield from _each(frame, rows, after, objection, removed=True)


def _asked(frame: Frame, before: Sides, after: Sides) -> Iterator[Shift]:
    """For whom a provider is asked that was not, all the rest agreeing."""
    if not before or not after:
        return
    for provider in sorted({provider for side in after for provider in side.providers}):
        known = [policy for side in before for policy in side.asking(provider)]

        def objection(request: Request, box: Box, provider: str = provider) -> Row | None:
            denied = denial((*after, *before), request, box)
            return denied or next((r for side in before if (r := side.asked(provider, request, box))), None)

        for side in after:
            rows = rows_of(side, only_in(side.asking(provider), known))
            for shift in _each(frame, rows, (*after, *before), objection, removed=False):
                yield replace(shift, kind=Kind.ASKED, provider=provider)


def denial(sides: Sides, request: Request, box: Box) -> Row | None:
    """A row of any side that denies."""
    return next((row for side in sides if (row := side.denial(request, box)) is not None), None)


def rows_of(side: Side, rules: Iterable[Ref]) -> Iterator[tuple[Row, str]]:
    """The rows of rules; one in place of a rule with too many, and why."""
    for policy, number in rules:
        try:
            yield from [(row, "") for row in side.rows([(policy, number)])]
        except Undecided as undecided:
            yield Row(policy, number), str(undecided)


def _each(
    frame: Frame, rows: Iterable[tuple[Row, str]], allowing: Sides, objection: Objection, *, removed: bool
) -> Iterator[Shift]:
    """A shift for each row of which there is a request that all of `allowing` allow and nothing objects to."""
    for row, why in rows:
        box = None
        if not why:
            try:
                box = _example(frame, row, allowing, objection)
            except Undecided as undecided:
                why = str(undecided)
        if box is not None or why:
            yield Shift(kind=Kind.ALLOWED, row=row, removed=removed, box=box, frame=frame, why=why)


def _example(frame: Frame, row: Row, allowing: Sides, objection: Objection) -> Box | None:
    root, work = frame.begin()
    box = root.having_all(row.each())
    if box is None:
        return None
    if allowing and (quick := _at_once(frame, box, allowing, objection)) is not None:
        return quick
    choices = [side.allowing_in for side in allowing]
    parts = frame.remaining(box, objection, work) if choices else [box]
    return frame.search((each for part in parts for each in crossed(part, choices, work)), objection, work)


def _at_once(frame: Frame, box: Box, allowing: Sides, objection: Objection) -> Box | None:
    """The box, where its example is already what is looked for."""
    request = box.request(http=frame.http)
    good = all(side.allowance(request, box) is not None for side in allowing) and objection(request, box) is None
    return box if good else None
