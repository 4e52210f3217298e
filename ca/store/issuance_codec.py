"""Issuance records of one batch as one compact blob: column by column, equal values once.

Layout (version 1): the octet 1, the length of the JSON part (4 octets, big-endian), the JSON part, then the raw
digests. The JSON part lists the columns in the order of the tuples below, after the number of records; a column is a
list, or a bare value where all records agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import repeat
from typing import Any

from ca.store.rows import from_micros, to_json, to_micros
from ca.store.values import IssuanceRecord

_VERSION = 1
_TEXTS = ("kind", "serial_or_kid", "authority_id", "server", "spiffe_id", "entry_id", "entry_revision", "agent")
_TIMES = ("not_before", "not_after")
_DIGESTS = ("tbs_sha256", "key_sha256")


def encode(records: Sequence[IssuanceRecord]) -> bytes:
    """One blob for at least one record; about 190 octets each in a batch of one agent."""
    by_name = dict(zip(IssuanceRecord._fields, zip(*records, strict=True), strict=True))
    columns: list[Any] = [len(records)]
    columns.extend(_folded(by_name[name]) for name in _TEXTS)
    columns.extend(_folded_times(by_name[name]) for name in _TIMES)
    blobs: list[bytes] = []
    for name in _DIGESTS:
        digests = by_name[name]
        columns.append(_folded(tuple(map(len, digests))))
        blobs.extend(digests)
    head = to_json(columns).encode()
    return b"".join((bytes((_VERSION,)), len(head).to_bytes(4, "big"), head, *blobs))


def decode(blob: bytes) -> list[IssuanceRecord]:
    """The inverse of `encode`."""
    if blob[0] != _VERSION:
        raise ValueError(f"issuance batch of unknown version {blob[0]}")
    end = 5 + int.from_bytes(blob[1:5], "big")
    count, *columns = json.loads(blob[5:end])
    texts = [_unfolded(column, count) for column in columns[: len(_TEXTS)]]
    times = [map(from_micros, _unfolded(column, count)) for column in columns[len(_TEXTS) : -len(_DIGESTS)]]
    digests = []
    for lengths in columns[-len(_DIGESTS) :]:
        cut, end = _cut(blob, end, _unfolded(lengths, count))
        digests.append(cut)
    names = (*_TEXTS, *_TIMES, *_DIGESTS)
    rows = zip(*texts, *times, *digests, strict=True)
    return [IssuanceRecord(**dict(zip(names, row, strict=True))) for row in rows]


def _folded(values: tuple[Any, ...]) -> Any:
    return values[0] if values.count(values[0]) == len(values) else values


def _folded_times(values: tuple[datetime, ...]) -> Any:
    folded = _folded(values)
    return to_micros(folded) if isinstance(folded, datetime) else list(map(to_micros, folded))


def _unfolded(column: Any, count: int) -> Any:
    return column if isinstance(column, list) else repeat(column, count)


def _cut(blob: bytes, start: int, lengths: Any) -> tuple[list[bytes], int]:
    pieces = []
    for length in lengths:
        pieces.append(blob[start : start + length])
        start += length
    return pieces, start
