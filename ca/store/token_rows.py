"""Rows of join tokens: how they are found, and when they are over."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, func, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.identity.spiffe_id import AGENT_PREFIX, SpiffeId
from ca.store.rows import to_micros
from ca.store.tables import join_token_uses, join_tokens

REPEAT = timedelta(minutes=5)
"""For so long after its use a token serves once more whoever has the key that it was used for."""

EXPIRED_KEPT = timedelta(days=7)
"""For so long an expired token that is not used up is told from one that never was."""

ID_DIGITS = 16

AGENTS = f"{AGENT_PREFIX}join_token/"
"""What the paths of agents begin with that came by a token."""


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
    """Rows whose value or name may be given again: of tokens that are used up, expired or revoked."""
    ended = or_(join_tokens.c.used_at.is_not(None), join_tokens.c.revoked_at.is_not(None))
    return or_(ended, join_tokens.c.expires_at < to_micros(now))


def live(now: datetime) -> ColumnElement[bool]:
    """Rows of tokens that make another agent."""
    return not_(replaceable(now))


async def forget(connection: AsyncConnection, condition: ColumnElement[bool]) -> int:
    """Tokens with their uses; returns how many tokens."""
    theirs = select(join_tokens.c.digest).where(condition)
    await connection.execute(delete(join_token_uses).where(join_token_uses.c.digest.in_(theirs)))
    return (await connection.execute(delete(join_tokens).where(condition))).rowcount


async def count_over(connection: AsyncConnection, before: datetime) -> int:
    query = select(func.count()).select_from(join_tokens).where(over(before))
    return int((await connection.execute(query)).scalar_one())


async def forget_token_of(connection: AsyncConnection, agent_id: SpiffeId) -> None:
    """An agent that is evicted is to come with a new token, or to use one of several uses once more, even if it has
    used its own a minute ago."""
    if not agent_id.path.startswith(AGENTS):
        return
    own = join_tokens.c.digest == token_digest(agent_id.path.removeprefix(AGENTS))
    await forget(connection, and_(own, join_tokens.c.used_at.is_not(None)))
    its_use = update(join_token_uses).where(join_token_uses.c.agent_path == agent_id.path)
    await connection.execute(its_use.values(used_key_sha256=None))
