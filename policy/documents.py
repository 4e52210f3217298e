"""YAML and JSON as values that know their place. Hostile text costs no more than its length.

Anchors, aliases and tags are refused, so nothing is ever larger in memory than it was written; depth, values and bytes
are bounded, and the parser's events are read one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from policy.model import Origin
from policy.problems import Problem, Refused, shown

MAX_BYTES = 16 << 20
MAX_DEPTH = 24
MAX_VALUES = 4_000_000
MAX_TEXT = 64 << 10

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE, _FALSE = frozenset({"true", "True", "TRUE"}), frozenset({"false", "False", "FALSE"})
_OTHER_BOOLEANS = frozenset({"yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"})
"""What YAML 1.1 and Kubernetes read as a boolean: nobody means it as a text without quotes."""
_NUMBER = re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o?[0-7]+|[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?)")

Mapping = dict[str, "Node"]
Scalar = str | int | float | bool | None


@dataclass(slots=True)
class Node:
    """A value: a mapping, a list or a scalar; `line` and `column` count from 1."""

    value: Mapping | list[Node] | Scalar
    line: int = 0
    column: int = 0

    @property
    def kind(self) -> str:
        """What it is, in words."""
        names = {dict: "a mapping", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
        return names.get(type(self.value), "a number")


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.values = 0
        self.events: Iterator[Any] = yaml.parse(text, Loader=_Loader)

    def refuse(self, code: str, message: str, mark: Any = None, hint: str = "") -> Refused:
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        return Refused([Problem(code, message, Origin(self.source, line, column), hint=hint)])

    def documents(self) -> Iterator[Node]:
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                node = self.node(next(self.events), MAX_DEPTH)
                if node.value is not None:
                    yield node

    def node(self, event: Any, depth: int) -> Node:
        mark = event.start_mark
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.refuse("P002", f"more than {MAX_VALUES:,} values", mark)
        if depth < 0:
            raise self.refuse("P002", f"nested more than {MAX_DEPTH} deep", mark)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self.refuse("P003", "anchors and aliases are not read", mark, "write the value out")
        if event.tag is not None and event.tag != "!":
            raise self.refuse("P003", f"the tag {shown(event.tag)} is not read", mark, "leave the tag out")
        place = mark.line + 1, mark.column + 1
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_TEXT:
                raise self.refuse("P002", f"a text of more than {MAX_TEXT:,} characters", mark)
            return Node(event.value if event.style or event.tag == "!" else plain(event.value), *place)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(list(self._items(depth)), *place)
        return Node(self._mapping(depth), *place)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            yield self.node(event, depth - 1)

    def _mapping(self, depth: int) -> Mapping:
        found: Mapping = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.refuse("P005", "a key must be a text", event.start_mark)
            self.node(event, depth)
            if event.value in found:
                raise self.refuse("P004", f"the key {shown(event.value)} is there twice", event.start_mark)
            found[event.value] = self.node(next(self.events), depth - 1)
        return found


def plain(text: str) -> Scalar:
    """What a text without quotes is."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE or text in _OTHER_BOOLEANS:
        return text.lower() in ("true", "yes", "on")
    if len(text) > 40 or not _NUMBER.fullmatch(text):
        return text
    try:
        return int(text, 0)
    except ValueError:
        return float(text) if any(c in text for c in ".eE") else int(text)


def read(text: str | bytes, source: str) -> list[Node]:
    """All documents of a stream that are not empty. Raises Refused."""

    def refuse(code: str, message: str, line: int = 1, column: int = 1) -> Refused:
        return Refused([Problem(code, message, Origin(source, line, column))])

    if len(text) > MAX_BYTES:
        raise refuse("P002", f"more than {MAX_BYTES >> 20} MiB")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise refuse("P001", f"not UTF-8, at byte {error.start}", *place_of(error.object, error.start)) from None
    try:
        return list(_Reader(text, source).documents())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        raise refuse("P001", f"not YAML: {error.problem or error.context}", *place) from None
    except (yaml.YAMLError, UnicodeError) as error:
        place = place_of(text.encode(errors="replace"), getattr(error, "position", 0))
        raise refuse("P001", f"not YAML: {str(error).partition(chr(10))[0][:200]}", *place) from None


def place_of(data: bytes, at: int) -> tuple[int, int]:
    """Line and column of a byte."""
    before = data[:at]
    line = before[before.rfind(b"\n") + 1 :]
    return before.count(b"\n") + 1, len(line.decode(errors="replace")) + 1


class TooLarge(ValueError):
    """A value that was read elsewhere and is none for a policy; `pointer` leads to it."""

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


def of_object(value: Any, depth: int = MAX_DEPTH) -> Node:
    """A value that was read elsewhere (a request's JSON), without places. Raises TooLarge."""
    if depth < 0:
        raise TooLarge(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return Node({str(key): _within(str(key), item, depth) for key, item in value.items()})
    if isinstance(value, list):
        return Node([_within(number, item, depth) for number, item in enumerate(value)])
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise TooLarge(f"a text of more than {MAX_TEXT:,} characters")
    return Node(value)


def _within(step: str | int, value: Any, depth: int) -> Node:
    try:
        return of_object(value, depth - 1)
    except TooLarge as error:
        raise TooLarge(str(error), f"/{escaped(step)}{error.pointer}") from None


def escaped(step: str | int) -> str:
    """A step of a JSON pointer."""
    return str(step).replace("~", "~0").replace("/", "~1")
