"""Reads a decision log, the newest first, within bounds of time and size."""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path

from ca.runtime.decision_log import ASKED, ASKED_FILE, FILE, aside
from policy.decision_record import MAX_LINE_BYTES, DecisionRecord, Source

MAX_RECORDS = 1000
MAX_SECONDS = 5.0
_BLOCK = 1 << 16
_AT = re.compile(rb'"at":"([^"]{1,40})"')
"""In what we wrote, the first is the line's time: within a text it would be escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which records. What is None or empty does not matter; a text ending in `*` is a prefix."""

    id: str = ""
    target: str = ""
    principal: str = ""
    policy: str = ""
    """`namespace/name`."""
    method: str = ""
    path: str = ""
    reason: str = ""
    source: Source | None = None
    allowed: bool | None = None
    shadow_differs: bool = False
    since: datetime | None = None
    until: datetime | None = None
    """Before this time."""
    limit: int = 100
    """At most MAX_RECORDS are given."""

    def takes(self, record: DecisionRecord) -> bool:
        """Whether a record is one of those."""
        texts = (
            (self.id, record.id),
            (self.target, record.target),
            (self.principal, record.principal or ""),
            (self.policy, record.policy or ""),
            (self.method, record.method or ""),
            (self.path, record.path or ""),
            (self.reason, record.reason),
        )
        return (
            all(not wanted or _fits(wanted, has) for wanted, has in texts)
            and (self.source is None or record.source is self.source)
            and (self.allowed is None or record.allowed is self.allowed)
            and (not self.shadow_differs or (record.shadow is not None and record.shadow is not record.allowed))
            and (self.since is None or record.at >= self.since)
            and (self.until is None or record.at < self.until)
        )


def _fits(wanted: str, has: str) -> bool:
    return has.startswith(wanted[:-1]) if wanted.endswith("*") else has == wanted


@dataclass(frozen=True, slots=True)
class Page:
    """`complete` False: there may be more, older ones; `unread` lines are no records of ours."""

    records: tuple[DecisionRecord, ...]
    complete: bool
    lost: int
    """How many records the lines that were read say were lost among them."""
    unread: int


def find(directory: Path, query: Query, *, seconds: float = MAX_SECONDS) -> Page:
    """The newest records of a query, as they were written. Blocks: call it in a thread. Raises OSError.

    Of an ID it is the last record alone, about the target of the first one: whoever sees an ID may log it again, about
    itself.
    """
    latest: dict[str, DecisionRecord] = {}
    found: list[DecisionRecord] = []
    limit, lost, unread = max(1, min(query.limit, MAX_RECORDS)), 0, 0
    needle = query.id.encode() if query.id and not query.id.endswith("*") else b""
    until = time.monotonic() + seconds
    for number, line in enumerate(_newest_first(directory, query.source)):
        if number % 256 == 0 and time.monotonic() > until:
            return Page(tuple(found), False, lost, unread)
        if line.startswith(b'{"lost":'):
            lost += _lost(line)
        elif not needle or needle in line:
            try:
                record = DecisionRecord.from_json(line)
            except ValueError:
                unread += 1
                continue
            if query.takes(record):
                if needle:
                    found = [latest.setdefault(record.target, record)]
                    continue
                found.append(record)
                if len(found) == limit:
                    return Page(tuple(found), False, lost, unread)
    return Page(tuple(found), True, lost, unread)


def _lost(line: bytes) -> int:
    digits = line[len(b'{"lost":') :].partition(b",")[0]
    return int(digits) if digits.isdigit() and len(digits) < 12 else 0


def _newest_first(directory: Path, source: Source | None) -> Iterator[bytes]:
    """Of what was enforced and of what was asked about, or of the one that a source is in."""
    enforced, asked = lines_of(directory / FILE), lines_of(directory / ASKED_FILE)
    if source is not None:
        return asked if source in ASKED else enforced
    return (line for _, line in heapq.merge(_timed(enforced), _timed(asked), key=itemgetter(0), reverse=True))


def _timed(lines: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Each with its time; what has none, with that of the line before."""
    at = b"\xff"
    for line in lines:
        found = _AT.search(line)
        at = found[1] if found else at
        yield at, line


def lines_of(file: Path) -> Iterator[bytes]:
    """Every line of a file and of those put aside, the last first. A file that is put aside meanwhile is read to its
    end, none twice."""
    seen: set[tuple[int, int]] = set()
    number = 0
    while True:
        path = file if number == 0 else aside(file, number)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if number:
                return
            number += 1
            continue
        try:
            status = os.fstat(fd)
            if (identity := (status.st_dev, status.st_ino)) not in seen:
                seen.add(identity)
                yield from _backwards(fd, status.st_size)
        finally:
            os.close(fd)
        number += 1


def _backwards(fd: int, size: int) -> Iterator[bytes]:
    """The lines of a file, the last first; what is longer than any line of ours is cut up, and so no record."""
    rest = b""
    while size > 0:
        begin = max(0, size - _BLOCK)
        rest = os.pread(fd, size - begin, begin) + rest
        size = begin
        first, *lines = rest.split(b"\n")
        yield from (line for line in reversed(lines) if line)
        rest = first if len(first) <= MAX_LINE_BYTES else first[-_BLOCK:]
    if rest:
        yield rest
