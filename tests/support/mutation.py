"""Evidence with one bit changed."""

from __future__ import annotations

from hypothesis import strategies as st

PLACES = st.integers(0, 1 << 20)
"""Drawn before the length is known: answers to challenges differ in length from run to run."""


def flipped(data: bytes, place: int) -> bytes:
    """Places beyond the end begin anew."""
    position = place % (len(data) * 8)
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)
