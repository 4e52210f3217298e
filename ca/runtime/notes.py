"""What was looked at while somebody was attested: kept for administrators, never shown to the caller.

A verifier or an attestor notes what it compared, and need not know who collects. No secrets: no tokens, no nonces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

MAX_NOTES = 64
MAX_CHARACTERS = 512


class Note(NamedTuple):
    """One thing that was looked at, for example ("audience", "wanted `spire-server`, the token has `other`")."""

    what: str
    value: str


_collected: ContextVar[list[Note] | None] = ContextVar("notes", default=None)


def note(what: str, value: object) -> None:
    """Keeps at most 64 notes of 512 characters of one attestation; outside of one it does nothing."""
    notes = _collected.get()
    if notes is not None and len(notes) < MAX_NOTES:
        notes.append(Note(what[:MAX_CHARACTERS], _shown(value)))


@contextmanager
def collecting() -> Iterator[list[Note]]:
    """The notes that the block takes, in its tasks and threads too. A block within a block keeps its own."""
    notes: list[Note] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


def _shown(value: object) -> str:
    text = str(value)
    text = text if text.isprintable() else ascii(text)  # terminals would obey it
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
