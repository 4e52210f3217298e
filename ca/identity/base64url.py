"""Base64url without padding (RFC 7515 §2), strict: one text for one value."""

from __future__ import annotations

import base64
import binascii
import re

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


def encode(data: bytes) -> str:
    """Bytes to base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Base64url to bytes. Raises ValueError for padding, foreign characters, and bits left over at the end."""
    if _ALPHABET.fullmatch(text) is None:
        raise ValueError("not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if encode(data) != text:  # two texts for one value would let a token change and still verify
        raise ValueError("not canonical base64url")
    return data
