"""Key ids: what every key manager accepts as a name, so that any of them can use it as a file's."""

from __future__ import annotations

import re

from ca.errors import AlreadyExists, InvalidArgument
from ca.identity.text import quote

MAX_KEY_ID_CHARACTERS = 100

_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_key_id(key_id: str) -> None:
    """Raises InvalidArgument (reason KEY_ID) unless the id begins with a letter or digit, goes on with letters,
    digits, dots, dashes and underscores, and has at most 100 characters."""
    if len(key_id) > MAX_KEY_ID_CHARACTERS or _KEY_ID.fullmatch(key_id) is None:
        raise InvalidArgument(
            f"invalid key id {quote(key_id)}",
            reason="KEY_ID",
            hint=f"use up to {MAX_KEY_ID_CHARACTERS} letters, digits, dots, dashes and underscores",
        )


def in_use(key_id: str) -> AlreadyExists:
    """The error for an id that has a key."""
    return AlreadyExists(f"key `{key_id}` exists", reason="KEY_EXISTS")
