"""JSON from strangers: no key twice, no number that is none, no half characters, not too deep and not too much."""

from __future__ import annotations

import json
from typing import Any

from ca.api.policy.pointers import pointer_of
from ca.api.policy.refusals import Fault, Faulty
from policy.documents import MAX_DEPTH, place_of, read
from policy.problems import HINTS, Refused, shown

MAX_VALUES = 1_000_000
MAX_NUMBER = 1 << 63
PLACED_BYTES = 256 << 10
"""A text in which lines and columns are looked for, which costs far more than to read JSON."""


class _Twice(ValueError):
    pass


def read_json(data: bytes) -> Any:
    """A value of JSON. Raises Faulty (BODY_MALFORMED)."""
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_mapping, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    except json.JSONDecodeError as error:
        raise malformed("P001", f"not JSON: {error.msg.lower()}", line=error.lineno, column=error.colno) from None
    except _Twice as error:
        raise _twice(data, str(error)) from None
    except RecursionError:
        raise malformed("P002", f"nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise malformed("P001", f"not JSON: {str(error)[:100].lower()}") from None
    check_value(value)
    return value


def check_value(value: Any) -> None:
    """Whether a value can be kept and given back. Raises Faulty (BODY_MALFORMED)."""
    left = [MAX_VALUES]
    _check(value, [], left)


def malformed(code: str, detail: str, *, pointer: str = "", line: int = 0, column: int = 0, hint: str = "") -> Faulty:
    """The refusal of a body that cannot be read."""
    hint = hint or HINTS.get(code, "")
    fault = Fault(code=code, detail=detail, pointer=pointer, line=line, column=column, hint=hint)
    return Faulty("the body cannot be read", [fault], reason="BODY_MALFORMED")


def not_utf8(error: UnicodeDecodeError) -> Faulty:
    """The refusal of bytes that are no text."""
    line, column = place_of(error.object, error.start)
    return malformed("P001", f"not UTF-8, at byte {error.start}", line=line, column=column)


def _twice(data: bytes, detail: str) -> Faulty:
    """With its place, which the reader of YAML knows."""
    try:
        read(data[:PLACED_BYTES], "")
    except Refused as error:
        place = error.problems[0].origin
        if error.problems[0].code == "P004":
            return malformed("P004", detail, line=place.line, column=place.column)
    return malformed("P004", detail)


def _check(value: Any, steps: list[str | int], left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise malformed("P002", f"more than {MAX_VALUES:,} values")
    if len(steps) > MAX_DEPTH:
        raise malformed("P002", f"nested more than {MAX_DEPTH} deep", pointer=pointer_of(steps))
    if isinstance(value, str):
        _check_text(value, steps)
    elif isinstance(value, int | float) and not -MAX_NUMBER < value < MAX_NUMBER:
        raise malformed("P001", "a number that is too large", pointer=pointer_of(steps))
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_text(name, steps)
            _check(inner, [*steps, name], left)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check(inner, [*steps, number], left)


def _check_text(text: str, steps: list[str | int]) -> None:
    if "\0" in text:
        raise malformed("P001", "a text with NUL", pointer=pointer_of(steps))
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise malformed("P001", "half of a surrogate pair is no text", pointer=pointer_of(steps))


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Twice(f"the key {shown(twice)} is there twice")
    return found


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")
