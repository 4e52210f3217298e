"""Between frozen values and columns: times, sets, IDs. Values that repeat in many rows share one object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TypeVar

from ca.errors import InvalidArgument
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_MICROSECOND = timedelta(microseconds=1)


def to_micros(time: datetime) -> int:
    """Whole microseconds since 1970, UTC."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The inverse of `to_micros`, aware and in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def to_json(value: object) -> str:
    """Compact and stable."""
    return _ENCODER.encode(value)


def selectors_to_json(selectors: Iterable[Selector]) -> str:
    """Sorted, so that equal sets give equal text."""
    return to_json(sorted([s.type, s.value] for s in selectors))


def selectors_from_json(text: str) -> frozenset[Selector]:
    return frozenset(shared_selector(kind, value) for kind, value in json.loads(text))


def selector_digest(selector: Selector) -> bytes:
    """16 octets that stand for a selector in an index (a type holds no colon, so no two share a text)."""
    return hashlib.sha256(str(selector).encode()).digest()[:16]


def similarity(spiffe_id: str, parent_id: str, selectors_json: str) -> bytes:
    """Equal for two entries exactly when SPIRE calls them similar: same ID, same parent, same set of selectors."""
    # Neither ID can hold a line feed, so the three parts cannot run into one another.
    return hashlib.sha256(f"{spiffe_id}\n{parent_id}\n{selectors_json}".encode()).digest()


def check_storable(texts: Iterable[str]) -> None:
    """Raises InvalidArgument for text that PostgreSQL cannot hold: then no database of ours does."""
    for text in texts:
        if "\x00" in text:
            raise InvalidArgument("text contains a NUL character", reason="TEXT_NUL")


def spiffe_id(text: str) -> SpiffeId:
    """An ID that stood in the database, sharing its trust domain with the others."""
    name, slash, path = text.removeprefix("spiffe://").partition("/")
    return SpiffeId(trust_domain(name), slash + path)


@lru_cache(maxsize=4096)
def shared_spiffe_id(text: str) -> SpiffeId:
    """The same for IDs that many rows name (parents)."""
    return spiffe_id(text)


@lru_cache(maxsize=1024)
def trust_domain(name: str) -> TrustDomain:
    return TrustDomain(name)


@lru_cache(maxsize=16384)
def shared_selector(kind: str, value: str) -> Selector:
    """The same for selectors: two that are one object are compared at once."""
    return Selector(kind, value)


def chunks(items: Sequence[T], size: int = 1000) -> Iterator[Sequence[T]]:
    """Slices of at most `size`: both databases bound the number of parameters of one statement."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
