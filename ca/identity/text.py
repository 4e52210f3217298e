"""Foreign text in messages: in backticks, on one line, of bounded length."""

from __future__ import annotations

SHOWN_CHARACTERS = 200


def quote(text: str) -> str:
    """In backticks, cut at 200 characters, unprintable characters escaped (no line breaks for the log)."""
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return f"`{printable(shown)}`"


def printable(text: str, *, besides: str = "") -> str:
    """Unprintable characters escaped, but those of `besides`: line breaks, and whatever a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in besides else c.encode("unicode_escape").decode() for c in text)
