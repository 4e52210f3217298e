"""What paths have in common: segments that look like identifiers, and templates made of what was seen."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from policy.templates import ONE, Template, has_braces

_IDENTIFIER = re.compile(
    r"[0-9]+"
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|(?=[a-f]*[0-9])[0-9a-f]{8,128}"
    r"|(?=[^0-9]*[0-9][^0-9]*[0-9][^0-9]*[0-9])[A-Za-z0-9_~-]{6,128}"
)
"""Numbers, UUIDs, hexadecimal digits, and words with three digits among them."""
_LITERAL = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+")

Segments = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a segment of a path stands for any: so many different values that look like identifiers were seen there, or
    so many of any look."""

    identifiers: int = 3
    words: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A path, or a template with how many paths it was made of."""

    text: str
    seen: int
    template: bool


def looks_like_identifier(segment: str) -> bool:
    """Whether a segment names one thing among many."""
    return _IDENTIFIER.fullmatch(segment) is not None


def shape_of(path: str) -> str:
    """A path with its identifiers left out, for grouping: nothing is ever decided by it."""
    return "/".join(ONE if looks_like_identifier(segment) else segment for segment in path.split("/"))


def shapes(paths: Iterable[str], thresholds: Thresholds) -> tuple[Shape, ...]:
    """The paths, those that differ only where a threshold holds as templates. Each path is matched by one."""
    found: list[Shape] = []
    able: set[Segments] = set()
    for path in sorted(set(paths)):
        segments = tuple(path.split("/")[1:])
        if path.startswith("/") and all(_LITERAL.fullmatch(segment) for segment in segments):
            able.add(segments)
        else:
            found.append(Shape(text=path, seen=1, template=False))
    for segments, seen in _merged(dict.fromkeys(able, 1), thresholds).items():
        text = f"/{'/'.join(segments)}"
        found.append(Shape(text=text, seen=seen, template=ONE in segments))
    return tuple(sorted(found, key=lambda shape: shape.text))


def _merged(paths: dict[Segments, int], thresholds: Thresholds) -> dict[Segments, int]:
    """Segment by segment from the front: what stands for any takes in everything that follows its values."""
    found: dict[Segments, int] = {}
    by_first: dict[str, dict[Segments, int]] = defaultdict(dict)
    for (first, *rest), seen in paths.items():
        by_first[first][tuple(rest)] = seen
    for first, rests in _opened(by_first, thresholds).items():
        ends = rests.pop((), 0)
        if ends:
            found[first,] = ends
        if rests:
            found.update({(first, *rest): seen for rest, seen in _merged(rests, thresholds).items()})
    return found


def _opened(by_first: dict[str, dict[Segments, int]], thresholds: Thresholds) -> dict[str, dict[Segments, int]]:
    identifiers = {first for first in by_first if looks_like_identifier(first)}
    if len(by_first) >= thresholds.words:
        joined = set(by_first)
    elif len(identifiers) >= thresholds.identifiers:
        joined = identifiers
    else:
        return by_first
    together: dict[Segments, int] = defaultdict(int)
    for first in joined:
        for rest, seen in by_first[first].items():
            together[rest] += seen
    return {first: rests for first, rests in by_first.items() if first not in joined} | {ONE: dict(together)}


def writable(path: str) -> bool:
    """Whether a policy can name this path and no other."""
    return bool(path) and not path.startswith("*") and not path.endswith("*") and not has_braces(path)


def understood(text: str) -> bool:
    """Whether a template is one that proxies take."""
    try:
        Template(text)
    except ValueError:
        return False
    return True
