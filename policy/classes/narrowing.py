"""Which rows of an index may match something in a box: a superset, found by what is left of each attribute."""

from __future__ import annotations

from collections.abc import Iterator

from policy.classes.boxes import Box
from policy.classes.literals import Literal, Variable, variable_of
from policy.compile import Block
from policy.index import Lookup
from policy.matching import fold
from policy.model import Attribute, MatchKind
from policy.pieces import Column, Row, Slot

MAX_VALUES = 64
_AS_WRITTEN = frozenset({Attribute.SOURCE_PRINCIPAL, Attribute.METHOD, Attribute.PATH})
"""Attributes whose texts are compared as they are."""


class Narrowing:
    """Of the blocks of one index. What a question leaves of a column is found once."""

    def __init__(self) -> None:
        self._left: dict[tuple[int, Slot, int], tuple[Literal, int]] = {}

    def rows(self, block: Block, box: Box) -> Iterator[Row]:
        """The rows that may match, the first that decides first."""
        left = block.everything
        for slot, lookup in zip(block.slots, block.lookups, strict=True):
            left &= self._of(block, slot, lookup, box)
        while left:
            top = left.bit_length() - 1
            left ^= 1 << top
            yield block.rows[top]

    def _of(self, block: Block, slot: Slot, lookup: Lookup, box: Box) -> int:
        """What one attribute leaves."""
        variable = variable_of(*slot)
        if variable.kind not in ("text", "port"):
            return block.everything
        values = box.few(variable)
        if values is None or len(values) > MAX_VALUES:
            return self._by_questions(block, slot, variable, box)
        left = 0
        for value in values:
            left |= lookup.of(fold(value) if slot[0] is Attribute.HOST else value)
        return left

    def _by_questions(self, block: Block, slot: Slot, variable: Variable, box: Box) -> int:
        left = block.everything
        if slot[0] in _AS_WRITTEN:
            for question in box.space(variable).must:
                key = (id(block), slot, id(question))
                known = self._left.get(key)
                if known is None:
                    found = block.everything & ~block.columns[slot].asking | _meeting(block.columns[slot], question)
                    known = self._left[key] = (question, found)
                left &= known[1]
        return left


def _meeting(column: Column, question: Literal) -> int:
    """The rows with a text that the question is for, or with anything of which that is not told at once."""
    found = 0
    for text, rows in column.positive.exact.items():
        if question.test(text):
            found |= rows
    heads = tuple(pattern.head for pattern in question.patterns)
    for kind, masks in column.positive.others.items():
        for text, rows in masks.items():
            if kind is not MatchKind.PREFIX or text.startswith(heads) or any(h.startswith(text) for h in heads):
                found |= rows
    return found
