"""From the policies for a target to one table: a row for each way in which a rule can match, a bit for each row.

Rows of CUSTOM policies have the highest bits, then those of DENY, then those of ALLOW: the highest bit that is left
after every attribute was looked at is the decisive row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from policy.index import Lookup, lookup
from policy.model import Action, Attribute, Policy
from policy.pieces import Column, Piece, Row, Slot

MAX_ROWS = 16384
"""In one block: every value of a block has a mask as long as the block, so that without a bound a target's memory would
grow with the square of its rules."""

ORDER = (Action.CUSTOM, Action.DENY, Action.ALLOW)
"""In which actions decide."""

Placed = tuple[Piece, int]
InPieces = tuple[Policy, Sequence[Piece]]

_FIRST = (
    Attribute.SOURCE_PRINCIPAL,
    Attribute.SOURCE_NAMESPACE,
    Attribute.SOURCE_SERVICE_ACCOUNT,
    Attribute.PATH,
    Attribute.METHOD,
)
"""What most rules differ by is looked at first: nothing is asked once no row is left."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are decided together, by bit. `lookups` give those that each attribute leaves; bits from `custom` up
    are of CUSTOM rows; `checked` are the rows whose rule must be looked at.

    It is made of `pieces`, each with its lowest bit, and of the `columns` of them all. Between pieces is some room,
    whose bits are in no mask, so that a policy may grow and nothing else moves.
    """

    rows: tuple[Row, ...]
    """In the room between pieces is any row."""
    slots: tuple[Slot, ...]
    """What each of the lookups looks at."""
    lookups: tuple[Lookup, ...]
    everything: int
    custom: int
    checked: int
    pieces: tuple[Placed, ...]
    columns: dict[Slot, Column]


@dataclass(frozen=True, slots=True)
class Compiled:
    """Blocks in the order in which they decide; one, unless there are very many rows. `any_allow`: an ALLOW policy is
    among the policies, even one without rules."""

    blocks: tuple[Block, ...]
    any_allow: bool


def compile_pieces(policies: Sequence[InPieces], previous: Compiled | None = None) -> Compiled:
    """Policies with their pieces for a protocol. Of `previous`, blocks in which little has changed are changed."""
    pieces = [piece for action in ORDER for policy, some in policies if policy.action is action for piece in some]
    before = iter(previous.blocks if previous is not None else ())
    return Compiled(
        blocks=tuple(_block(some, next(before, None)) for some in _together(pieces)),
        any_allow=any(policy.action is Action.ALLOW for policy, _ in policies),
    )


def _together(pieces: Iterable[Piece]) -> Iterable[list[Piece]]:
    """Pieces of as many rows as a block has room for, the lowest first; one block at least."""
    some: list[Piece] = []
    rows = 0
    for piece in pieces:
        if rows + len(piece.rows) > MAX_ROWS:
            yield some[::-1]
            some, rows = [], 0
        some.append(piece)
        rows += len(piece.rows)
    yield some[::-1]


def _block(pieces: Sequence[Piece], before: Block | None) -> Block:
    placed = _placed_again(pieces, before) if before is not None else None
    if before is not None and placed is not None:
        return _finished(placed, _changed(before, placed))
    placed, shift = [], 0
    for piece in pieces:
        placed.append((piece, shift))
        shift += _room(piece)
    return _finished(placed, _merged(placed))


def _room(piece: Piece) -> int:
    """Bits that a piece gets: it may grow by an eighth, by one row at least."""
    return len(piece.rows) * 9 // 8 + 1


def _placed_again(pieces: Sequence[Piece], before: Block) -> list[Placed] | None:
    """The pieces where those before them were; None where they do not fit, or nearly all are new."""
    if len(pieces) != len(before.pieces):
        return None
    known = sum(new is old for new, (old, _) in zip(pieces, before.pieces, strict=True))
    if known * 2 < len(pieces) or any(
        len(new.rows) > _room(old) or new.action is not old.action
        for new, (old, _) in zip(pieces, before.pieces, strict=True)
    ):
        return None
    return [(new, shift) for new, (_, shift) in zip(pieces, before.pieces, strict=True)]


def _merged(placed: Sequence[Placed]) -> dict[Slot, Column]:
    if len(placed) == 1:
        return placed[0][0].columns
    columns: dict[Slot, Column] = {}
    for piece, shift in placed:
        for slot, column in piece.columns.items():
            columns.setdefault(slot, Column()).take_in(column, shift)
    return columns


def _changed(before: Block, placed: Sequence[Placed]) -> dict[Slot, Column]:
    """The columns before, with some pieces in place of others."""
    columns = dict(before.columns)
    mine: set[Slot] = set()
    for (old, shift), (new, _) in zip(before.pieces, placed, strict=True):
        if old is new:
            continue
        for slot in {*old.columns, *new.columns} - mine:
            columns[slot] = columns[slot].copy() if slot in columns else Column()
            mine.add(slot)
        keep = ~(((1 << len(old.rows)) - 1) << shift)
        for slot, column in old.columns.items():
            columns[slot].drop(column, keep)
        for slot, column in new.columns.items():
            columns[slot].take_in(column, shift)
    return {slot: column for slot, column in columns.items() if slot not in mine or column}


def _finished(placed: Sequence[Placed], columns: dict[Slot, Column]) -> Block:
    rows: list[Row] = []
    everything = checked = custom = 0
    for piece, shift in placed:
        rows += piece.rows[:1] * (shift - len(rows))
        rows += piece.rows
        everything |= ((1 << len(piece.rows)) - 1) << shift
        checked |= piece.checked << shift
        if piece.action is not Action.CUSTOM:
            custom = len(rows)
    ordered = sorted(columns, key=lambda slot: _FIRST.index(slot[0]) if slot[0] in _FIRST else len(_FIRST))
    return Block(
        rows=tuple(rows),
        slots=tuple(ordered),
        lookups=tuple(lookup(slot, columns[slot], everything) for slot in ordered),
        everything=everything,
        custom=custom,
        checked=checked,
        pieces=tuple(placed),
        columns=columns,
    )
