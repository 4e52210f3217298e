"""Serial numbers, key ids and token ids out of random bytes that the caller brings."""

from __future__ import annotations

import string
from base64 import urlsafe_b64encode

from ca.errors import Internal

SERIAL_RANDOM_BYTES = 16
"""128 bits, twice what CA/B Baseline Requirements §7.1 ask for; as INTEGER at most 17 of RFC 5280's 20 octets."""

KID_RANDOM_BYTES = 32
KID_CHARACTERS = 32
JTI_RANDOM_BYTES = 16

_ALPHABET = string.ascii_letters + string.digits


def new_serial(random: bytes) -> int:
    """A certificate serial number from exactly 16 random bytes: 1 to 2^128 - 1 (RFC 5280 §4.1.2.2).

    Raises Internal for another length, or for sixteen zeros, which no working source of randomness gives.
    """
    _check(random, SERIAL_RANDOM_BYTES)
    serial = int.from_bytes(random, "big")
    if serial == 0:
        raise Internal("random source gave only zeros", reason="RANDOM")
    return serial


def new_kid(random: bytes) -> str:
    """A JWT key id of 32 characters [A-Za-z0-9] from exactly 32 random bytes (at most 190 bits of them fit)."""
    _check(random, KID_RANDOM_BYTES)
    number = int.from_bytes(random, "big")
    characters = []
    for _ in range(KID_CHARACTERS):
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(characters)


def new_jti(random: bytes) -> str:
    """A token id: 16 random bytes as 22 characters of base64url without padding, as SPIRE makes them."""
    _check(random, JTI_RANDOM_BYTES)
    return urlsafe_b64encode(random).rstrip(b"=").decode()


def _check(random: bytes, size: int) -> None:
    if len(random) != size:
        raise Internal(f"expected {size} random bytes, got {len(random)}", reason="RANDOM")
