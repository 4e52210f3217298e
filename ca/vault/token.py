"""A Vault token and when something has to be done about it: values alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

MAX_TTL_SECONDS = 10**10
"""Three hundred years: Vault's own durations reach no further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """`since` is when it was issued or last renewed, by the monotonic clock; a `ttl_seconds` of 0 is for ever.

    `ours` tells whether we logged in for it: then nobody else uses it, and it is revoked when it is replaced.
    """

    value: str = field(repr=False)
    ttl_seconds: int
    first_ttl_seconds: int
    renewable: bool
    ours: bool
    since: float

    @property
    def ends_at(self) -> float | None:
        """By the monotonic clock; None: never."""
        return self.since + self.ttl_seconds if self.ttl_seconds else None

    def due_at(self, share: float) -> float | None:
        """When `share` of its life is over."""
        return self.since + self.ttl_seconds * share if self.ttl_seconds else None

    @property
    def capped(self) -> bool:
        """Renewals bring less than half of the first life: its maximal life (max TTL) is near, a new log-in is due."""
        return bool(self.ttl_seconds) and self.ttl_seconds * 2 < self.first_ttl_seconds

    def renewed(self, *, ttl_seconds: int, at: float) -> Token:
        return replace(self, ttl_seconds=ttl_seconds, since=at)


def ttl_of(value: object) -> int:
    """Seconds as Vault gives them; nothing is 0. Raises ValueError for what is no such number."""
    if value is None:
        return 0
    if not isinstance(value, int) or not 0 <= value <= MAX_TTL_SECONDS:
        raise ValueError("not a number of seconds")
    return value
