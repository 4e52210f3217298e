"""Rules that change nothing: those that never match, and those beside others that decide the same already.

What is said holds for every request to every target: with such a rule left out, all is decided as before. Of a rule of
which that was too much work to find out, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from policy.classes.boxes import Box
from policy.classes.frames import Frame
from policy.classes.literals import AskedBoth, Tokens
from policy.classes.rows import Ref, Row, Side
from policy.classes.search import search
from policy.classes.texts import Undecided, Work
from policy.model import Action, Mesh, Request
from policy.snapshot import Judge

MAX_STEPS_IN_ALL = 2_000_000


Name = tuple[str, int]
"""Of a rule: its policy's id and its number."""


class Use(IntEnum):
    """What a rule is good for, the least first."""

    VACUOUS = 0
    """Nothing ever matches it."""
    OVERRIDDEN = 1
    """Everything that it allows is denied."""
    SHADOWED = 2
    """One other rule matches everything that it matches."""
    REDUNDANT = 3
    """Several others, or those that deny, do so together."""
    NEEDED = 4
    """It decides something, or it is not known that it does not."""


@dataclass(slots=True)
class Judgement:
    """What a rule is good for at all targets that were looked at, and the rules that make it so."""

    use: Use
    others: dict[Name, None] = field(default_factory=dict)
    """Those that match in its stead."""

    def take_in(self, other: Judgement) -> None:
        """Elsewhere, too: it is as good as where it is best."""
        self.others |= other.others
        if Use.VACUOUS in (self.use, other.use) or Use.NEEDED in (self.use, other.use):
            self.use = max(self.use, other.use)
        elif self.use is not other.use or (self.use is Use.SHADOWED and len(self.others) > 1):
            self.use = Use.REDUNDANT


Judgements = dict[Name, Judgement]


def judged(judges: Iterable[Judge], mesh: Mesh, known: frozenset[str]) -> Judgements:
    """What the rules of the policies `known` (by id) are good for, at targets of these judges. Rules of CUSTOM, AUDIT
    and shadow policies are asked only whether they can match."""
    work = Work(MAX_STEPS_IN_ALL)
    found: Judgements = {}
    for judge in judges:
        here = _Here(judge, mesh, work)
        for policy in judge.policies:
            for number in range(len(policy.rules or ())) if policy.id in known else ():
                before = found.get((policy.id, number))
                if before is None:
                    found[policy.id, number] = here.of((policy, number))
                elif before.use is not Use.NEEDED:
                    before.take_in(here.of((policy, number)))
    return found


class _Here:
    """The targets of one judge."""

    def __init__(self, judge: Judge, mesh: Mesh, work: Work) -> None:
        self._judge, self._mesh, self._work = judge, mesh, work
        self._frames: dict[tuple[bool, Tokens], tuple[Frame, Side]] = {}

    def of(self, rule: Ref) -> Judgement:
        """What a rule is good for."""
        try:
            try:
                return self._in_frames(rule, (Tokens.ANY,))
            except AskedBoth:
                return self._in_frames(rule, (Tokens.WHOLE, Tokens.IN_PARTS))
        except Undecided:
            return Judgement(Use.NEEDED)

    def _in_frames(self, rule: Ref, tokens: Iterable[Tokens]) -> Judgement:
        found = Judgement(Use.VACUOUS)
        for http in (True, False):
            for assumed in tokens:
                if found.use is not Use.NEEDED:
                    found.take_in(_in_frame(*self._frame(http, assumed), rule))
        return found

    def _frame(self, http: bool, tokens: Tokens) -> tuple[Frame, Side]:
        known = self._frames.get((http, tokens))
        if known is None:
            frame = Frame(self._mesh, self._work, http=http, tokens=tokens)
            known = self._frames[http, tokens] = (frame, frame.sides((self._judge,))[0])
        return known


def _in_frame(frame: Frame, side: Side, rule: Ref) -> Judgement:
    policy, _ = rule
    boxes = list(_boxes(frame, side, rule))
    if not boxes:
        return Judgement(Use.VACUOUS)
    if policy.shadow or policy.action not in (Action.ALLOW, Action.DENY):
        return Judgement(Use.NEEDED)
    met: list[Row] = []
    if policy.action is Action.ALLOW and not _search(frame, boxes, side, rule, met, denials=True, same=False):
        return Judgement(Use.OVERRIDDEN, _names(met))
    met.clear()
    if _search(frame, boxes, side, rule, met, denials=policy.action is Action.ALLOW, same=True):
        return Judgement(Use.NEEDED)
    others = _names(met)
    denied = any(row.policy is not None and row.policy.action is not policy.action for row in met)
    return Judgement(Use.REDUNDANT if denied or len(others) > 1 else Use.SHADOWED, others)


def _boxes(frame: Frame, side: Side, rule: Ref) -> Iterator[tuple[Box, Work]]:
    for row in side.rows([rule]):
        root, work = frame.begin()
        box = root.having_all(row.each())
        if box is not None:
            yield box, work


def _search(
    frame: Frame,
    boxes: Iterable[tuple[Box, Work]],
    side: Side,
    rule: Ref,
    met: list[Row],
    *,
    denials: bool,
    same: bool,
) -> bool:
    """Whether there is a request in the boxes that nothing else decides: neither a denial, nor another rule with the
    same action. `met` are those that were."""
    action = rule[0].action

    def objection(request: Request, box: Box) -> Row | None:
        for row in side.hits(request, box):
            if row.policy is None:
                continue
            denies = denials and side.denies(row.policy)
            if denies or (same and row.policy.action is action and not _is(row, rule)):
                met.append(row)
                return row
        return None

    return any(search([box], objection, work, http=frame.http) is not None for box, work in boxes)


def _is(row: Row, rule: Ref) -> bool:
    """Whether a row is of a rule, perhaps in the form that it has for connections."""
    policy, number = rule
    return row.policy is not None and row.policy.id == policy.id and row.number == number


def _names(rows: Iterable[Row]) -> dict[Name, None]:
    return {(row.policy.id, row.number): None for row in rows if row.policy is not None}
