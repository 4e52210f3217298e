"""One use of a join token: found, counted and written down in the caller's transaction.

A token that serves once is the name of its agent, as on SPIRE's wire. One that serves several times stays a secret
after its first use: its agents are called by the token's ID and a number.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import Denied
from ca.store.rows import from_micros, to_micros
from ca.store.tables import join_token_uses, join_tokens
from ca.store.token_rows import AGENTS, REPEAT, token_digest, token_id


class Use(NamedTuple):
    """Of a token's row; `again` where the same key had it before."""

    token: Row[Any]
    agent_path: str
    again: bool


async def use(
    connection: AsyncConnection, value: str, now: datetime, *, key_sha256: bytes | None, id_key: bytes
) -> Use:
    """The writer lock makes it atomic. Raises Denied, and then nothing has changed."""
    digest = token_digest(value)
    query = select(join_tokens).where(join_tokens.c.digest == digest).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise _unknown()
    if row.revoked_at is not None:
        raise Denied("join token was revoked", reason="JOIN_TOKEN_REVOKED", hint="create a new one")
    given = await _given(connection, digest, now, key_sha256)
    if given is not None:
        return Use(row, given or AGENTS + value, again=True)
    if row.used_at is not None:
        raise _unknown()
    if from_micros(row.expires_at) < now:
        raise Denied("join token expired", reason="JOIN_TOKEN_EXPIRED", hint="create a new one")
    number = 1 + await _count(connection, digest)
    path = AGENTS + (value if row.uses == 1 else f"{token_id(digest, id_key)}/{number}")
    await _write_down(connection, row, number, to_micros(now), key_sha256, path)
    return Use(row, path, again=False)


async def _given(connection: AsyncConnection, digest: bytes, now: datetime, key_sha256: bytes | None) -> str | None:
    """The agent that the token has made for the same key a moment ago."""
    if key_sha256 is None:
        return None
    used = join_token_uses.c
    query = select(used.agent_path).where(used.digest == digest, used.used_key_sha256 == key_sha256)
    query = query.where(used.used_at.between(to_micros(now - REPEAT), to_micros(now)))
    return (await connection.execute(query.order_by(used.number.desc()))).scalars().first()


async def _count(connection: AsyncConnection, digest: bytes) -> int:
    query = select(func.count()).select_from(join_token_uses).where(join_token_uses.c.digest == digest)
    return int((await connection.execute(query)).scalar_one())


async def _write_down(
    connection: AsyncConnection, row: Row[Any], number: int, at: int, key_sha256: bytes | None, path: str
) -> None:
    used = {"digest": row.digest, "number": number, "used_at": at, "used_key_sha256": key_sha256, "agent_path": path}
    await connection.execute(insert(join_token_uses).values(**used))
    if number >= row.uses:
        await connection.execute(update(join_tokens).where(join_tokens.c.digest == row.digest).values(used_at=at))


def _unknown() -> Denied:
    return Denied("join token does not exist or has already been used", reason="JOIN_TOKEN_UNKNOWN")
