"""Durations as people write them: `90`, `90s`, `10m`, `1h30m`, `7d`."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", re.ASCII)
_UNITS = (86400, 3600, 60, 1)
MAX_CHARACTERS = 40


def parse_duration(text: str) -> int | None:
    """Seconds; None for what is no duration."""
    match = _DURATION.fullmatch(text) if 0 < len(text) <= MAX_CHARACTERS else None
    if match is None:
        return None
    return sum(int(count) * unit for count, unit in zip(match.groups(), _UNITS, strict=True) if count)


def seconds_hint(key: str, value: object) -> str:
    """What to write for a key that wants seconds and got a duration; nothing where that is not what happened."""
    seconds = parse_duration(value) if isinstance(value, str) else None
    return "" if seconds is None else f"it takes a number of seconds: `{key}: {seconds}`"
