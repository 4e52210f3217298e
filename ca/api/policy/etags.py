"""Conditional requests (RFC 9110 §13): entity tags, and what `If-Match` and `If-None-Match` ask for. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*')


@dataclass(frozen=True, slots=True)
class Tags:
    """A list of entity tags, or `*`. `strong` are the ones that may be compared strongly (§8.8.3.2)."""

    any: bool = False
    strong: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()

    def match(self, etag: str | None) -> bool:
        """For If-Match: what is there has one of the tags, strongly. None: nothing is there."""
        return etag is not None and (self.any or etag in self.strong)

    def name(self, etag: str | None) -> bool:
        """For If-None-Match: as `match`, but weak tags count, too."""
        return etag is not None and (self.any or etag in self.strong or etag in self.weak)


def parse_tags(header: str) -> Tags:
    """`"a", W/"b"` or `*`. Raises ValueError."""
    if header.strip() == "*":
        return Tags(any=True)
    strong: set[str] = set()
    weak: set[str] = set()
    at = 0
    while at < len(header):
        found = _TAG.match(header, at)
        if found is None:
            break
        (weak if found[1] else strong).add(found[2])
        at = found.end()
        if at < len(header) and header[at] == ",":
            at += 1
        elif at < len(header):
            break
        else:
            return Tags(strong=frozenset(strong), weak=frozenset(weak))
    raise ValueError('expected `*` or entity tags in double quotes, as in `"5e1c…"`')


def quoted(etag: str) -> str:
    """As it stands in the header `ETag`."""
    return f'"{etag}"'
