"""What decides in a template: named as in Go's, total, and without a side that is left out."""

from __future__ import annotations

import re
from functools import reduce

from ca.identity.template_functions import FUNCTIONS, Function

_VERB = re.compile(r"%(.?)", re.DOTALL)

Value = str | bool


def is_true(value: Value) -> bool:
    """Go's text/template §Actions: what is not empty."""
    return bool(value)


def _and(*values: Value) -> Value:
    """The first one that is empty, or the last."""
    return reduce(lambda found, one: one if found else found, values)


def _or(*values: Value) -> Value:
    return reduce(lambda found, one: found or one, values)


def verbs_of(text: str) -> int:
    """How many values a format takes. Raises ValueError for a verb other than `%s` and `%v`."""
    verbs = [found[1] for found in _VERB.finditer(text)]
    for verb in verbs:
        if verb not in ("s", "v", "%") or not verb:
            raise ValueError(f"`printf` knows `%s`, `%v` and `%%`, and no `%{verb}`")
    return len(verbs) - verbs.count("%")


def _printf(text: str, *values: str) -> str:
    left = iter(values)
    return _VERB.sub(lambda found: "%" if found[1] == "%" else next(left), text)


CONDITIONS = FUNCTIONS | {
    "and": Function(_and, (object, object), result=object, more=True),
    "contains": Function(lambda part, text: part in text, (str, str), result=bool),
    "eq": Function(lambda one, *others: one in others, (object, object), result=bool, more=True, alike=True),
    "hasPrefix": Function(lambda prefix, text: text.startswith(prefix), (str, str), result=bool),
    "hasSuffix": Function(lambda suffix, text: text.endswith(suffix), (str, str), result=bool),
    "ne": Function(lambda one, other: one != other, (object, object), result=bool, alike=True),
    "not": Function(lambda value: not value, (object,), result=bool),
    "or": Function(_or, (object, object), result=object, more=True),
    "print": Function(lambda *texts: "".join(texts), more=True),
    "printf": Function(_printf, (str, str), more=True),
}
