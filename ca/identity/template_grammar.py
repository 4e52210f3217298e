"""The grammar of templates: text to a tree that can only be evaluated, in bounded time, without failing.

    template := (text | "{{" pipeline "}}")*
    pipeline := command ("|" call)*          the value before a pipe is the last argument of the call behind it
    command  := operand | call | "index" .Field(.Field)* string      one of many names below a field
    call     := function argument*
    argument := operand | integer
    operand  := .Field(.Field)* | "string" | `string` | "(" pipeline ")"

It is what SPIRE's agent path templates and its templates of Kubernetes use of Go's template language. There is nothing
that repeats, decides or calls.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from ca.identity.template_functions import FUNCTIONS, Function
from ca.identity.text import quote

MAX_TEMPLATE_CHARACTERS = 1024
MAX_CALLS = 16
MAX_DEPTH = 4

_TOKEN = re.compile(
    r"""(?P<field>(?:\.[A-Za-z_][A-Za-z0-9_]*)+)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<integer>-?[0-9]{1,4}(?![0-9A-Za-z_.]))
    |(?P<string>"(?:[^"\\\n]|\\["\\])*"|`[^`]*`)
    |(?P<end>}})
    |(?P<mark>[()|])""",
    re.VERBOSE,
)
_SPACE = re.compile(r"[ \t\r\n]*")
_NOT_HERE = {
    "if": "nothing is decided in a template here",
    "with": "nothing is decided in a template here",
    "range": "nothing is repeated in a template here",
    "index": "name the field that holds the value",
    "printf": "write the text around the actions",
    "print": "write the text around the actions",
}


@dataclass(frozen=True, slots=True)
class Text:
    """What stands outside of the actions."""

    value: str
    position: int


@dataclass(frozen=True, slots=True)
class Constant:
    value: str


@dataclass(frozen=True, slots=True)
class Field:
    """Without the leading dot: `Subject.CommonName`."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    function: Function
    arguments: tuple[Expression | int, ...]


Expression = Constant | Field | Call


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def parse(template: str, fields: Collection[str]) -> tuple[Text | Expression, ...]:
    """Raises ValueError that names the character. `X.*` in `fields` stands for any one name below `X`."""
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(f"the template is longer than {MAX_TEMPLATE_CHARACTERS} characters")
    parts: list[Text | Expression] = []
    here = 0
    while (start := template.find("{{", here)) >= 0:
        if start > here:
            parts.append(Text(template[here:start], here))
        action = _Action(template, start + 2, fields)
        parts.append(action.whole())
        here = action.end
    if here < len(template):
        parts.append(Text(template[here:], here))
    return tuple(parts)


def fields_of(expression: Expression) -> frozenset[str]:
    """The fields whose values go into it."""
    if isinstance(expression, Field):
        return frozenset({expression.name})
    if isinstance(expression, Constant):
        return frozenset()
    return frozenset().union(*(fields_of(one) for one in expression.arguments if not isinstance(one, int)))


class _Action:
    """Reads one action, from behind its `{{`; `end` is behind its `}}` then."""

    def __init__(self, template: str, start: int, fields: Collection[str]) -> None:
        self._template = template
        self._fields = fields
        self._calls = 0
        self.end = start
        self._ahead = self._next()

    def whole(self) -> Expression:
        found = self._pipeline(0)
        if self._ahead.kind != "end":
            _fail(self._ahead, f"{quote(self._ahead.text)} is not expected here")
        return found

    def _pipeline(self, depth: int) -> Expression:
        value: Expression = self._call(None, depth) if self._ahead.kind == "word" else self._operand(depth)
        while self._ahead.text == "|" and self._ahead.kind == "mark":
            self._take()
            if self._ahead.kind != "word":
                _fail(self._ahead, "a function must follow `|`")
            value = self._call(value, depth)
        return value

    def _call(self, piped: Expression | None, depth: int) -> Call | Field:
        name = self._take()
        if name.text == "index" and piped is None and self._named_below(self._ahead):
            return self._index()
        function = FUNCTIONS.get(name.text)
        if function is None:
            _fail(name, f"there is no function `{name.text}`", _function_hint(name.text))
        self._calls += 1
        if self._calls > MAX_CALLS:
            _fail(name, f"an action has at most {MAX_CALLS} function calls")
        given: list[Expression | int] = []
        while self._ahead.kind in ("field", "string", "integer") or self._ahead.text == "(":
            given.append(self._integer() if self._ahead.kind == "integer" else self._operand(depth))
        if piped is not None:
            given.append(piped)
        self._check_types(name, function, given)
        return Call(function, tuple(given))

    def _named_below(self, token: _Token) -> bool:
        return token.kind == "field" and f"{token.text[1:]}.*" in self._fields

    def _index(self) -> Field:
        """One of the names below a field, which may hold what a field's name cannot: dots, dashes, slashes."""
        above, name = self._take(), self._take()
        if name.kind != "string" or not (below := _unquoted(name.text)):
            _fail(name, "`index` takes a field and a text")
        return Field(f"{above.text[1:]}.{below}")

    @staticmethod
    def _check_types(name: _Token, function: Function, given: list[Expression | int]) -> None:
        wanted = ", ".join("a number" if one is int else "a text" for one in function.parameters)
        fits = [isinstance(one, int) == (kind is int) for one, kind in zip(given, function.parameters, strict=False)]
        if len(given) != len(function.parameters) or not all(fits):
            _fail(name, f"`{name.text}` takes {wanted}")

    def _operand(self, depth: int) -> Expression:
        token = self._take()
        if token.kind == "field":
            return self._field(token)
        if token.kind == "string":
            return Constant(_unquoted(token.text))
        if token.text == "(" and token.kind == "mark":
            if depth >= MAX_DEPTH:
                _fail(token, f"brackets are nested deeper than {MAX_DEPTH}")
            inner = self._pipeline(depth + 1)
            closing = self._take()
            if closing.text != ")":
                _fail(closing, "`)` is missing")
            return inner
        if token.kind == "end":
            _fail(token, "a field or a text is missing")
        return _fail(token, f"{quote(token.text)} is not expected here", "a field begins with a dot: `.Name`")

    def _integer(self) -> int:
        return int(self._take().text)

    def _field(self, token: _Token) -> Field:
        name = token.text[1:]
        above, _, _ = name.rpartition(".")
        if name not in self._fields and not (above and f"{above}.*" in self._fields):
            near = difflib.get_close_matches(name, self._fields, 1)
            known = ", ".join(f"`.{one}`" for one in sorted(self._fields))
            _fail(token, f"there is no field `.{name}`", f"did you mean `.{near[0]}`?" if near else f"known: {known}")
        return Field(name)

    def _take(self) -> _Token:
        token = self._ahead
        if token.kind != "end":
            self._ahead = self._next()
        return token

    def _next(self) -> _Token:
        space = _SPACE.match(self._template, self.end)
        start = space.end() if space else self.end
        found = _TOKEN.match(self._template, start)
        if found is None or found.lastgroup is None:
            _explain(self._template, start)
        self.end = found.end()
        return _Token(found.lastgroup, found[0], start)


def _unquoted(text: str) -> str:
    inner = text[1:-1]
    return inner if text[0] == "`" else re.sub(r"\\(.)", r"\1", inner)


def _function_hint(name: str) -> str:
    if name in _NOT_HERE:
        return _NOT_HERE[name]
    near = difflib.get_close_matches(name, FUNCTIONS, 1)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(FUNCTIONS)}"


def _explain(template: str, position: int) -> NoReturn:
    """Why no token begins here."""
    rest = template[position:]
    token = _Token("", "", position)
    if not rest:
        _fail(token, "the action is not closed", "`}}` is missing")
    if rest[0] == "-" or rest.startswith("/*"):
        _fail(token, "trim markers and comments are not known here")
    if rest[0] in '"`':
        _fail(token, 'the text is not closed, or has an escape other than `\\"` and `\\\\`')
    if rest[0] in "$." or rest[0] == ":":
        _fail(token, "there are no variables, and a field has a name", "a field looks like `.Name`")
    _fail(token, f"{quote(rest[0])} is not expected here")


def _fail(token: _Token, what: str, hint: str = "") -> NoReturn:
    raise ValueError(f"character {token.position + 1} of the template: {what}" + (f" ({hint})" if hint else ""))
