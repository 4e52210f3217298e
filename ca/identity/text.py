"""Foreign text in messages: in backticks, on one line, of bounded length."""

from __future__ import annotations

SHOWN_CHARACTERS = 200


def quote(text: str) -> str:
    """In backticks, cut at 200 characters, unprintable characters escaped (no line breaks for the log)."""
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    if shown.isprintable():
        return f"`{shown}`"
    return "`" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + "`"
