"""Pages by key, not by count: a token says after which row to go on, and rows never change their place.

So an item created or deleted between two pages neither repeats nor hides another.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Select

from ca.errors import InvalidArgument
from ca.store.values import Page

T = TypeVar("T")

_PREFIX = b"p1:"  # tokens of another layout will say so


def page_token(position: int) -> str:
    """Opaque to callers."""
    return base64.urlsafe_b64encode(_PREFIX + str(position).encode()).decode().rstrip("=")


def parse_page_token(token: str) -> int:
    """Raises InvalidArgument for what `page_token` cannot have made."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    number = raw.removeprefix(_PREFIX)
    position = int(number) if number.isdigit() and len(number) <= 18 else 0
    if page_token(position) != token:
        raise InvalidArgument(
            f"could not parse page token `{token[:64]}`",
            reason="PAGE_TOKEN",
            hint="pass on next_page_token exactly as it was returned",
        )
    return position


def limit(query: Select[Any], position: Column[int], page_size: int, token: str) -> Select[Any]:
    """One row more than the page, to know whether another follows; everything when `page_size` ≤ 0 (SPIRE's rule,
    which then ignores the token)."""
    query = query.order_by(position)
    if page_size <= 0:
        return query
    if token:
        query = query.where(position > parse_page_token(token))
    return query.limit(page_size + 1)


def page(rows: Sequence[Any], page_size: int, convert: Callable[[Any], T]) -> Page[T]:
    """The page of rows that `limit` selected; each row has a `position`."""
    if page_size <= 0 or len(rows) <= page_size:
        return Page(tuple(convert(row) for row in rows))
    kept = rows[:page_size]
    return Page(tuple(convert(row) for row in kept), page_token(kept[-1].position))
