"""What a template may do to a value: named and ordered as Sprig's functions, each total and bounded.

Letters are those of ASCII: two values that differ in others must not become one path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_LOWER = str.maketrans(_UPPER, _UPPER.lower())
_TO_UPPER = str.maketrans(_UPPER.lower(), _UPPER)
_SPACE = " \t\n\v\f\r"


@dataclass(frozen=True, slots=True)
class Function:
    """`parameters` are the types it takes, `object` for any; a pipe gives the last one. None of them is optional.

    With `more` any number of the last one may follow. `alike`: all of one type.
    """

    apply: Callable[..., str | bool]
    parameters: tuple[type, ...] = (str,)
    result: type = str
    more: bool = False
    alike: bool = False


def _trunc(length: int, text: str) -> str:
    """The first `length` characters, or the last ones where it is negative."""
    return text[:length] if length >= 0 else text[length:]


def _substr(start: int, end: int, text: str) -> str:
    return text[max(start, 0) : end if end >= 0 else None]


def _replace(old: str, new: str, text: str) -> str:
    return text.replace(old, new) if old else text


def _nospace(text: str) -> str:
    return "".join(text.split())


def _sha1sum(text: str) -> str:
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _sha256sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


FUNCTIONS = {
    "default": Function(lambda fallback, text: text or fallback, (str, str)),
    "lower": Function(lambda text: text.translate(_TO_LOWER)),
    "nospace": Function(_nospace),
    "replace": Function(_replace, (str, str, str)),
    "sha1sum": Function(_sha1sum),
    "sha256sum": Function(_sha256sum),
    "substr": Function(_substr, (int, int, str)),
    "trim": Function(lambda text: text.strip(_SPACE)),
    "trimAll": Function(lambda characters, text: text.strip(characters), (str, str)),
    "trimPrefix": Function(lambda prefix, text: text.removeprefix(prefix), (str, str)),
    "trimSuffix": Function(lambda suffix, text: text.removesuffix(suffix), (str, str)),
    "trunc": Function(_trunc, (int, str)),
    "upper": Function(lambda text: text.translate(_TO_UPPER)),
}
