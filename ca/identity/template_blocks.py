"""Templates that decide: the grammar's actions, and blocks of them that are taken or left.

    template := (text | "{{" pipeline "}}" | comment | block)*
    block    := "{{if" pipeline "}}" template ("{{else if" pipeline "}}" template)* ("{{else}}" template)? "{{end}}"
    comment  := "{{/*" text "*/}}"           a dash beside the braces takes the white space away: "{{- … -}}"

It is what templates of SPIRE's ClusterSPIFFEIDs commonly use of Go's. Nothing is repeated, nothing has a name: whatever
is written ends after at most as many steps as it has characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ca.identity.template_grammar import Action, Dialect, Expression, Text, Token, check_length, fail, fields_of

MAX_BLOCKS_DEEP = 16

_OPEN = re.compile(r"{{(?:-(?=\s))?")
_COMMENT = re.compile(r"\s*/\*.*?\*/(?:\s-}}|}})", re.DOTALL)
_KEYWORD = re.compile(r"\s*(else\s+if|if|else|end|range|with|define|block|template|break|continue)\b")
_REFUSED = {
    "range": "nothing is repeated in a template here",
    "with": "name the field whole, and use `if`",
    "define": "a template has no parts with names here",
    "block": "a template has no parts with names here",
    "template": "a template has no parts with names here",
}


@dataclass(frozen=True, slots=True)
class If:
    """`then` where the condition is not empty, else `other`."""

    condition: Expression
    then: tuple[Node, ...]
    other: tuple[Node, ...]


Node = Text | Expression | If


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text, an action's expression, or a keyword with what stands behind it."""

    keyword: str
    value: Text | Expression | None
    token: Token


def parse_blocks(template: str, dialect: Dialect) -> tuple[Node, ...]:
    """Raises ValueError that names the character."""
    check_length(template)
    reader = _Reader(list(_pieces(template, dialect)))
    found = reader.nodes(0)
    if (left := reader.ahead) is not None:
        fail(left.token, f"`{left.keyword}` is not expected here", "there is no `if` that it belongs to")
    return found


def fields_in(nodes: Sequence[Node]) -> frozenset[str]:
    """The fields whose values go into it or decide."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, If):
            found |= fields_of(node.condition) | fields_in(node.then) | fields_in(node.other)
        elif not isinstance(node, Text):
            found |= fields_of(node)
    return frozenset(found)


def _pieces(template: str, dialect: Dialect) -> Iterator[_Piece]:
    here, trims = 0, False
    while (found := _OPEN.search(template, here)) is not None:
        yield from _text(template, here, found.start(), trims, len(found[0]) == 3)
        comment = _COMMENT.match(template, found.end())
        if comment is not None:
            here, trims = comment.end(), comment[0].endswith("-}}")
            continue
        piece, here, trims = _action(template, found.end(), dialect)
        yield piece
    yield from _text(template, here, len(template), trims, False)


def _text(template: str, start: int, end: int, left: bool, right: bool) -> Iterator[_Piece]:
    text = template[start:end]
    if left:
        text = text.lstrip(" \t\r\n")
    if right:
        text = text.rstrip(" \t\r\n")
    if text:
        yield _Piece("", Text(text, start), Token("", text, start))


def _action(template: str, start: int, dialect: Dialect) -> tuple[_Piece, int, bool]:
    """One, where it ends, and whether the white space behind it goes."""
    found = _KEYWORD.match(template, start)
    if found is None:
        action = Action(template, start, dialect)
        expression = action.whole()
        return _Piece("", expression, Token("", "", start)), action.end, action.trims
    keyword = " ".join(found[1].split())
    token = Token("word", keyword, found.start(1))
    if keyword not in ("if", "else if", "else", "end"):
        fail(token, f"`{keyword}` is not known here", _REFUSED.get(keyword, ""))
    action = Action(template, found.end(), dialect)
    if keyword in ("if", "else if"):
        return _Piece(keyword, action.whole(), token), action.end, action.trims
    action.close()
    return _Piece(keyword, None, token), action.end, action.trims


class _Reader:
    """Pieces to a tree. `ahead` is the first that is not read yet."""

    def __init__(self, pieces: list[_Piece]) -> None:
        self._pieces = pieces
        self._place = 0

    @property
    def ahead(self) -> _Piece | None:
        return self._pieces[self._place] if self._place < len(self._pieces) else None

    def nodes(self, depth: int) -> tuple[Node, ...]:
        """Up to a keyword that ends them."""
        found: list[Node] = []
        while (piece := self.ahead) is not None and piece.keyword in ("", "if"):
            self._place += 1
            if piece.keyword:
                found.append(self._if(piece, depth + 1))
            elif piece.value is not None:
                found.append(piece.value)
        return tuple(found)

    def _if(self, opening: _Piece, depth: int) -> If:
        if depth > MAX_BLOCKS_DEEP:
            fail(opening.token, f"blocks are nested deeper than {MAX_BLOCKS_DEEP}")
        condition = opening.value
        assert condition is not None
        assert not isinstance(condition, Text)
        then = self.nodes(depth)
        closing = self.ahead
        if closing is None:
            fail(opening.token, "the block is not closed", "`{{ end }}` is missing")
        self._place += 1
        if closing.keyword == "else if":
            return If(condition, then, (self._if(closing, depth + 1),))
        if closing.keyword == "end":
            return If(condition, then, ())
        other = self.nodes(depth)
        ending = self.ahead
        if ending is None or ending.keyword != "end":
            fail(closing.token, "`{{ end }}` must follow `{{ else }}`")
        self._place += 1
        return If(condition, then, other)
