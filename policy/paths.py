"""Paths as Envoy's filters see them, and whether one is normal already.

Rules look at the path of a request without query and fragment, after the proxy normalized it. A proxy that does not is
told by what it lets through: a path that is not normal is refused where path rules are, unless the target is declared
normalized.
"""

from __future__ import annotations

import re

_NOT_NORMAL = re.compile(
    r"//"  # an empty segment
    r"|/\.{1,2}(?=[/;]|\Z)"  # `.` and `..` as segments, with parameters too
    r"|%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aA]|5[fF]|6[1-9a-fA-F]|7[0-9aA]|7[eE])"  # an unreserved character, encoded
    r"|%(?:2[fF]|5[cC]|00)"  # slash, backslash and NUL, encoded
    r"|[\\\x00]"
)
"""RFC 3986 §6.2.2 and what is read as a separator somewhere. Meant for the part before the query."""


def without_query(path: str) -> str:
    """Everything before the first `?` or `#`."""
    for mark in "?#":
        path = path.partition(mark)[0]
    return path


def is_normal(path: str) -> bool:
    """Whether every proxy sees the same path in this one (`path` as sent, with or without a query)."""
    return _NOT_NORMAL.search(without_query(path)) is None
