"""JSON patch (RFC 6902). Pure: all operations hold, or nothing comes of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from ca.api.policy.pointers import steps_of

MAX_OPERATIONS = 1_000
MAX_COPIED = 100_000
"""Values that one patch may copy: a document doubles with each copy of itself into itself."""
MAX_DEPTH = 64

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_FIELDS = {
    "add": ("path", "value"),
    "remove": ("path",),
    "replace": ("path", "value"),
    "move": ("path", "from"),
    "copy": ("path", "from"),
    "test": ("path", "value"),
}


class PatchRefused(ValueError):
    """An operation that cannot be done; `pointer` leads to it in the patch."""

    def __init__(self, message: str, pointer: str, *, failed_test: bool = False) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.failed_test = failed_test


def patched(document: Any, patch: Any) -> Any:
    """The document after the patch, as a new value. Raises PatchRefused."""
    if not isinstance(patch, list):
        raise PatchRefused("a JSON patch is a list of operations", "")
    if len(patch) > MAX_OPERATIONS:
        raise PatchRefused(f"more than {MAX_OPERATIONS:,} operations", "")
    work = _Work(copy.deepcopy(document))
    for number, operation in enumerate(patch):
        try:
            work.do(operation)
        except _TestFailed:
            raise PatchRefused("the value is another", f"/{number}", failed_test=True) from None
        except ValueError as error:
            raise PatchRefused(str(error), f"/{number}") from None
    return work.document


def same(one: Any, other: Any) -> bool:
    """Equality of JSON values (RFC 6902 §4.6): numbers by value, true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class _TestFailed(ValueError):
    pass


class _Work:
    """A document that is being changed."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self._copied = 0

    def do(self, operation: Any) -> None:
        """One operation. Raises ValueError."""
        if not isinstance(operation, dict):
            raise ValueError("an operation is a mapping")
        name = operation.get("op")
        if not isinstance(name, str) or name not in _FIELDS:
            raise ValueError(f"`op` must be one of {', '.join(_FIELDS)}")
        for field in _FIELDS[name]:
            if field not in operation or (field != "value" and not isinstance(operation[field], str)):
                raise ValueError(f"`{name}` needs `{field}`")
        path = steps_of(operation["path"])
        if len(path) > MAX_DEPTH:
            raise ValueError(f"a path has at most {MAX_DEPTH} steps")
        act: Callable[[list[str], Any], None] = getattr(self, f"_{name}")
        act(path, steps_of(operation["from"]) if "from" in _FIELDS[name] else operation.get("value"))

    def _add(self, path: list[str], value: Any) -> None:
        if not path:
            self.document = value
            return
        parent, last = self._find(path[:-1]), path[-1]
        if isinstance(parent, list):
            parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1), value)
        elif isinstance(parent, dict):
            parent[last] = value
        else:
            raise ValueError("nothing can be added inside of a text, a number, a boolean or null")

    def _remove(self, path: list[str], value: Any) -> None:
        self._take(path)

    def _replace(self, path: list[str], value: Any) -> None:
        if not path:
            self.document = value
            return
        parent, last = self._find(path[:-1]), path[-1]
        _child(parent, last)
        parent[_index(last, len(parent)) if isinstance(parent, list) else last] = value

    def _move(self, path: list[str], origin: list[str]) -> None:
        if path == origin:
            self._find(origin)
            return
        if path[: len(origin)] == origin:
            raise ValueError("nothing can be moved into itself")
        self._add(path, self._take(origin))

    def _copy(self, path: list[str], origin: list[str]) -> None:
        value = self._find(origin)
        self._copied += _size(value, MAX_COPIED - self._copied, MAX_DEPTH - len(path))
        self._add(path, copy.deepcopy(value))

    def _test(self, path: list[str], value: Any) -> None:
        if not same(self._find(path), value):
            raise _TestFailed

    def _find(self, path: list[str]) -> Any:
        value = self.document
        for step in path:
            value = _child(value, step)
        return value

    def _take(self, path: list[str]) -> Any:
        if not path:
            raise ValueError("the whole document cannot be taken away")
        parent, last = self._find(path[:-1]), path[-1]
        value = _child(parent, last)
        del parent[_index(last, len(parent)) if isinstance(parent, list) else last]
        return value


def _child(value: Any, step: str) -> Any:
    if isinstance(value, list):
        return value[_index(step, len(value))]
    if isinstance(value, dict) and step in value:
        return value[step]
    raise ValueError("there is nothing at this place")


def _index(step: str, length: int) -> int:
    """RFC 6901 §4: no sign, no leading zero. Raises ValueError."""
    if not _INDEX.fullmatch(step) or int(step) >= length:
        raise ValueError("there is no such item in this list")
    return int(step)


def _size(value: Any, most: int, depth: int) -> int:
    """How many values it is made of. Raises ValueError where these are more than `most`, or it is too deep."""
    if depth < 0 or most < 1:
        raise ValueError(f"a patch copies at most {MAX_COPIED:,} values, {MAX_DEPTH} deep")
    count = 1
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        count += _size(inner, most - count, depth - 1)
    return count
