"""An item's own outcome inside of a batch: a Status has a code and a message, so the reason stands in the message."""

from __future__ import annotations

import re

from ca.errors import BurgeeError

_WITH_REASON = re.compile(r"(?P<text>.*) \((?P<reason>[A-Z][A-Z0-9_]{2,63})\)", re.DOTALL)


def item_message(error: BurgeeError) -> str:
    """`detail; hint (REASON)`."""
    text = f"{error.detail}; {error.hint}" if error.hint else error.detail
    return f"{text} ({error.reason})"


def split_message(message: str) -> tuple[str, str]:
    """The text and the reason of an item's message; the reason is empty where it has none, as SPIRE's have not."""
    found = _WITH_REASON.fullmatch(message)
    return (found["text"], found["reason"]) if found else (message, "")
