"""One protocol, one kind of verdict and one assumption about tokens: within a frame, decisions are compared exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from policy.classes.boxes import Box, whole
from policy.classes.literals import REQUEST_PRINCIPAL, AskedBoth, Literals, Tokens, any_request_principal
from policy.classes.rows import Rows, Side
from policy.classes.search import Objection, remaining, search
from policy.classes.spaces import Space
from policy.classes.texts import Work
from policy.model import Mesh
from policy.snapshot import Judge

MAX_STEPS = 40_000
"""For one rule."""
FREE_STEPS = 200
MAX_STEPS_IN_ALL = 600_000
"""For everything that takes more than those."""

Found = TypeVar("Found")


class Frame:
    """`work` bounds everything that is asked within it."""

    def __init__(
        self, mesh: Mesh, work: Work, *, http: bool = True, shadow: bool = False, tokens: Tokens = Tokens.ANY
    ) -> None:
        self.mesh, self.http, self.shadow, self._work = mesh, http, shadow, work
        self.rows = Rows(Literals(tokens), http=http)

    def sides(self, judges: Iterable[Judge], mesh: Mesh | None = None) -> tuple[Side, ...]:
        """What judges say in it."""
        return tuple(Side(judge, mesh or self.mesh, self.rows, shadow=self.shadow) for judge in judges)

    def work(self) -> Work:
        """What may be done on one question."""
        return Work(MAX_STEPS, self._work, free=FREE_STEPS)

    def begin(self) -> tuple[Box, Work]:
        """All requests of the frame, and the work that may be done on one question."""
        self._work.spend()
        work = self.work()
        box = whole(self.mesh.trust_domains[0], work)
        tokens = self.rows.literals.tokens
        if tokens is Tokens.WHOLE:
            box = box.having(any_request_principal()) or box
        elif tokens is Tokens.IN_PARTS:
            box.spaces[REQUEST_PRINCIPAL] = Space(REQUEST_PRINCIPAL, absent=True)
        return box, work

    def remaining(self, box: Box, objection: Objection, work: Work) -> list[Box]:
        """A box without what is easily seen to be objected to, in a few parts."""
        return remaining(box, objection, work, http=self.http)

    def search(self, boxes: Iterable[Box], objection: Objection, work: Work) -> Box | None:
        """A part of one of the boxes whose example nothing objects to."""
        return search(boxes, objection, work, http=self.http)


def in_frames(
    judges: Sequence[Judge],
    mesh: Mesh,
    work: Work,
    ask: Callable[[Frame], Iterable[Found]],
    *,
    protocols: Sequence[bool] = (True, False),
) -> Iterator[Found]:
    """Asks in every frame that the judges' policies need, in those of HTTP (True) and of connections (False). Where a
    token's principal and its parts are asked for, once for requests that have it and once for others."""
    shadows = (False, True) if any(p.shadow for judge in judges for p in judge.policies) else (False,)
    for in_shadow in shadows:
        for http in protocols:
            try:
                yield from list(ask(Frame(mesh, work, http=http, shadow=in_shadow)))
            except AskedBoth:
                for tokens in (Tokens.WHOLE, Tokens.IN_PARTS):
                    yield from ask(Frame(mesh, work, http=http, shadow=in_shadow, tokens=tokens))
