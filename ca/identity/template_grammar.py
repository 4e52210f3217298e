"""The grammar of templates: text to a tree that can only be evaluated, in bounded time, without failing.

    template := (text | "{{" pipeline "}}")*
    pipeline := command ("|" call)*          the value before a pipe is the last argument of the call behind it
    command  := operand | call | "index" .Field(.Field)* string      one of many names below a field
    call     := function argument*
    argument := operand | integer
    operand  := .Field(.Field)* | "string" | `string` | "(" pipeline ")"

It is what SPIRE's agent path templates use of Go's template language. There is nothing that repeats, decides or calls;
`template_blocks` has what decides.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from ca.identity.template_conditions import verbs_of
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
    |(?P<trim>-}})
    |(?P<mark>[()|])""",
    re.VERBOSE,
)
_ENDS = ("end", "trim")
_VALUES = ("field", "string", "integer")
_WORDS = {str: "a text", int: "a number", bool: "true or false", object: "a value"}
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
    value: str | bool


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
class Token:
    kind: str
    text: str
    position: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """`X.*` in `fields` stands for any one name below `X`. `booleans` are those that are true or false.

    One that `decides` has `true`, `false` and trim markers, too.
    """

    fields: Collection[str]
    booleans: frozenset[str] = frozenset()
    functions: Mapping[str, Function] = field(default_factory=lambda: FUNCTIONS)
    decides: bool = False


def parse(template: str, fields: Collection[str]) -> tuple[Text | Expression, ...]:
    """Raises ValueError that names the character."""
    check_length(template)
    dialect = Dialect(fields)
    parts: list[Text | Expression] = []
    here = 0
    while (start := template.find("{{", here)) >= 0:
        if start > here:
            parts.append(Text(template[here:start], here))
        action = Action(template, start + 2, dialect)
        parts.append(action.whole())
        here = action.end
    if here < len(template):
        parts.append(Text(template[here:], here))
    return tuple(parts)


def check_length(template: str) -> None:
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(f"the template is longer than {MAX_TEMPLATE_CHARACTERS} characters")


def fields_of(expression: Expression) -> frozenset[str]:
    """The fields whose values go into it."""
    if isinstance(expression, Field):
        return frozenset({expression.name})
    if isinstance(expression, Constant):
        return frozenset()
    return frozenset().union(*(fields_of(one) for one in expression.arguments if not isinstance(one, int)))


class Action:
    """Reads one action, from behind its `{{`; `end` is behind its `}}` then, and `trims` whether a `-` was before."""

    def __init__(self, template: str, start: int, dialect: Dialect) -> None:
        self._template = template
        self._dialect = dialect
        self._fields = dialect.fields
        self._functions = dialect.functions
        self._calls = 0
        self.trims = False
        self.end = start
        self._ahead = self._next()

    def whole(self) -> Expression:
        found = self._pipeline(0)
        self.close()
        return found

    def close(self) -> None:
        """Nothing but the end is left."""
        if self._ahead.kind not in _ENDS:
            fail(self._ahead, f"{quote(self._ahead.text)} is not expected here")
        self.trims = self._ahead.kind == "trim"

    def _pipeline(self, depth: int) -> Expression:
        value: Expression = self._call(None, depth) if self._is_name(self._ahead) else self._operand(depth)
        while self._ahead.text == "|" and self._ahead.kind == "mark":
            self._take()
            if self._ahead.kind != "word":
                fail(self._ahead, "a function must follow `|`")
            value = self._call(value, depth)
        return value

    def _is_name(self, token: Token) -> bool:
        return token.kind == "word" and not self._is_boolean(token)

    def _is_boolean(self, token: Token) -> bool:
        return self._dialect.decides and token.kind == "word" and token.text in ("true", "false")

    def _call(self, piped: Expression | None, depth: int) -> Call | Field:
        name = self._take()
        if name.text == "index" and piped is None and self._named_below(self._ahead):
            return self._index()
        function = self._functions.get(name.text)
        if function is None:
            fail(name, f"there is no function `{name.text}`", _function_hint(name.text, self._functions))
        self._calls += 1
        if self._calls > MAX_CALLS:
            fail(name, f"an action has at most {MAX_CALLS} function calls")
        given: list[Expression | int] = []
        while self._ahead.kind in _VALUES or self._ahead.text == "(" or self._is_boolean(self._ahead):
            given.append(self._integer() if self._ahead.kind == "integer" else self._operand(depth))
        if piped is not None:
            given.append(piped)
        self._check_types(name, function, given)
        return Call(function, tuple(given))

    def _named_below(self, token: Token) -> bool:
        return token.kind == "field" and f"{token.text[1:]}.*" in self._fields

    def _index(self) -> Field:
        """One of the names below a field, which may hold what a field's name cannot: dots, dashes, slashes."""
        above, name = self._take(), self._take()
        if name.kind != "string" or not (below := _unquoted(name.text)):
            fail(name, "`index` takes a field and a text")
        return Field(f"{above.text[1:]}.{below}")

    def _check_types(self, name: Token, function: Function, given: list[Expression | int]) -> None:
        kinds = list(function.parameters)
        if function.more:
            kinds += kinds[-1:] * (len(given) - len(kinds))
        found = [int if isinstance(one, int) else type_of(one, self._dialect.booleans) for one in given]
        fits = [one is kind or (kind is object and one is not int) for one, kind in zip(found, kinds, strict=False)]
        if len(given) != len(kinds) or not all(fits):
            wanted = ", ".join(_WORDS[one] for one in function.parameters)
            fail(name, f"`{name.text}` takes {wanted}{' and more of them' if function.more else ''}")
        if function.alike and len(set(found)) > 1:
            fail(name, f"`{name.text}` compares what is of one type")
        if name.text == "printf":
            _check_format(name, given)

    def _operand(self, depth: int) -> Expression:
        token = self._take()
        if token.kind == "field":
            return self._field(token)
        if token.kind == "string":
            return Constant(_unquoted(token.text))
        if token.text == "(" and token.kind == "mark":
            if depth >= MAX_DEPTH:
                fail(token, f"brackets are nested deeper than {MAX_DEPTH}")
            inner = self._pipeline(depth + 1)
            closing = self._take()
            if closing.text != ")":
                fail(closing, "`)` is missing")
            return inner
        if self._is_boolean(token):
            return Constant(token.text == "true")
        if token.kind in _ENDS:
            fail(token, "a field or a text is missing")
        return fail(token, f"{quote(token.text)} is not expected here", "a field begins with a dot: `.Name`")

    def _integer(self) -> int:
        return int(self._take().text)

    def _field(self, token: Token) -> Field:
        name = token.text[1:]
        above, _, _ = name.rpartition(".")
        if name not in self._fields and not (above and f"{above}.*" in self._fields):
            near = difflib.get_close_matches(name, self._fields, 1)
            known = ", ".join(f"`.{one}`" for one in sorted(self._fields))
            fail(token, f"there is no field `.{name}`", f"did you mean `.{near[0]}`?" if near else f"known: {known}")
        return Field(name)

    def _take(self) -> Token:
        token = self._ahead
        if token.kind not in _ENDS:
            self._ahead = self._next()
        return token

    def _next(self) -> Token:
        space = _SPACE.match(self._template, self.end)
        start = space.end() if space else self.end
        found = _TOKEN.match(self._template, start)
        if found is None or found.lastgroup is None or not self._may_trim(found.lastgroup, start):
            _explain(self._template, start)
        self.end = found.end()
        return Token(found.lastgroup, found[0], start)

    def _may_trim(self, kind: str, start: int) -> bool:
        """Go's text/template §Text and spaces: white space stands before the dash."""
        return kind != "trim" or (self._dialect.decides and self._template[start - 1].isspace())


def type_of(expression: Expression, booleans: frozenset[str]) -> type:
    """`str` or `bool`; of what is either, as `and` gives it, it matters only whether it is empty: `bool`."""
    if isinstance(expression, Constant):
        return type(expression.value)
    if isinstance(expression, Field):
        return bool if expression.name in booleans else str
    if expression.function.result is not object:
        return expression.function.result
    kinds = {type_of(one, booleans) for one in expression.arguments if not isinstance(one, int)}
    return str if kinds == {str} else bool


def _check_format(name: Token, given: Sequence[Expression | int]) -> None:
    text = given[0].value if isinstance(given[0], Constant) else None
    if not isinstance(text, str):
        fail(name, "the format of `printf` stands in the template")
    try:
        count = verbs_of(text)
    except ValueError as error:
        fail(name, str(error))
    if count != len(given) - 1:
        fail(name, f"the format takes {count}, and there are {len(given) - 1} values")


def _unquoted(text: str) -> str:
    inner = text[1:-1]
    return inner if text[0] == "`" else re.sub(r"\\(.)", r"\1", inner)


def _function_hint(name: str, functions: Mapping[str, Function]) -> str:
    if name in _NOT_HERE:
        return _NOT_HERE[name]
    near = difflib.get_close_matches(name, functions, 1)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(functions)}"


def _explain(template: str, position: int) -> NoReturn:
    """Why no token begins here."""
    rest = template[position:]
    token = Token("", "", position)
    if not rest:
        fail(token, "the action is not closed", "`}}` is missing")
    if rest[0] == "-" or rest.startswith("/*"):
        fail(token, "trim markers and comments are not known here")
    if rest[0] in '"`':
        fail(token, 'the text is not closed, or has an escape other than `\\"` and `\\\\`')
    if rest[0] in "$." or rest[0] == ":":
        fail(token, "there are no variables, and a field has a name", "a field looks like `.Name`")
    fail(token, f"{quote(rest[0])} is not expected here")


def fail(token: Token, what: str, hint: str = "") -> NoReturn:
    raise ValueError(f"character {token.position + 1} of the template: {what}" + (f" ({hint})" if hint else ""))
