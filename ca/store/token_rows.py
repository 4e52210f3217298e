"""Rows of join tokens: how they are found, and when they are over."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, or_
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.identity.spiffe_id import AGENT_PREFIX, SpiffeId
from ca.store.rows import to_micros
from ca.store.tables import join_tokens

REPEAT = timedelta(minutes=5)
"""For so long after its use a token serves once more whoever has the key that it was used for."""

EXPIRED_KEPT = timedelta(days=7)
"""For so long an expired token that nobody used is told from one that never was."""

ID_DIGITS = 16

_PREFIX = f"{AGENT_PREFIX}join_token/"


def token_digest(value: str) -> bytes:
    """Tokens are looked up by digest: no comparison of secrets takes a time that depends on them."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def token_id(digest: bytes, key: bytes) -> str:
    """From a token's digest."""
    return hmac.digest(key, digest, "sha256").hex()[:ID_DIGITS]


def over(now: datetime) -> ColumnElement[bool]:
    """Rows that are of no use any more."""
    expired = join_tokens.c.expires_at < to_micros(now - EXPIRED_KEPT)
    return or_(and_(join_tokens.c.used_at.is_(None), expired), join_tokens.c.used_at < to_micros(now - REPEAT))


def replaceable(now: datetime) -> ColumnElement[bool]:
    """Rows whose value may be made again: of used tokens, and of expired ones."""
    return or_(join_tokens.c.used_at.is_not(None), join_tokens.c.expires_at < to_micros(now))


async def forget_token_of(connection: AsyncConnection, agent_id: SpiffeId) -> None:
    """An agent that is evicted is to come with a new token, even if it has used its own a minute ago."""
    if agent_id.path.startswith(_PREFIX):
        used = join_tokens.c.digest == token_digest(agent_id.path.removeprefix(_PREFIX))
        await connection.execute(delete(join_tokens).where(used, join_tokens.c.used_at.is_not(None)))
