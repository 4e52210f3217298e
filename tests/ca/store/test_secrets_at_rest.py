"""What somebody learns who reads the database file, or a backup of it."""

from __future__ import annotations

from pathlib import Path

from ca.identity.spiffe_id import SpiffeId
from tests.support.stores import HOUR, NOW, TD, opened

TOKEN = "a-token-that-nobody-has-used-yet"


async def file_after(directory: Path, *, alias: SpiffeId | None) -> bytes:
    """Every byte of a closed store that knows one unused join token."""
    async with opened(f"sqlite:///{directory}/store.sqlite3") as store:
        await store.tokens.create(TOKEN, NOW + HOUR, alias)
    return b"".join(path.read_bytes() for path in sorted(directory.glob("store.sqlite3*")))


async def test_an_unused_token_cannot_be_read_from_the_file(tmp_path: Path) -> None:
    content = await file_after(tmp_path, alias=None)
    assert b"join_tokens" in content
    assert TOKEN.encode() not in content


async def test_a_token_with_an_alias_can(tmp_path: Path) -> None:
    """The alias's parent is the agent's ID to be, which ends in the token, as on SPIRE's wire. The threat model says
    so; when this no longer holds, it must be said there too."""
    assert TOKEN.encode() in await file_after(tmp_path, alias=SpiffeId(TD, "/node"))
