"""The longest that anything lives that an authority signs, as far as it is not cut short anyway."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from ca.authority.state import AuthorityKind
from ca.authority.ttls import longest_svid_ttl
from ca.service.issuance import IssueSettings
from ca.store.entries import Entries


class LongestTtls:
    """Asked for one kind of authority; `settings` are those in force when it is asked."""

    def __init__(
        self,
        *,
        entries: Entries,
        settings: Callable[[], IssueSettings],
        ca_ttl_seconds: int,
        without_entries_seconds: int = 0,
    ) -> None:
        """`without_entries_seconds` is for certificates that no entry tells of."""
        self._entries = entries
        self._settings = settings
        self._ca_ttl_seconds = ca_ttl_seconds
        self._without_entries_seconds = without_entries_seconds

    async def __call__(self, kind: AuthorityKind) -> timedelta:
        """Of entries, defaults and agents. Raises Unavailable."""
        settings = self._settings()
        x509, jwt = await self._entries.longest_ttls()
        lives = (
            [x509, settings.x509_svid_ttl_seconds, settings.agent_ttl_seconds, self._without_entries_seconds]
            if kind == AuthorityKind.X509
            else [jwt, settings.jwt_svid_ttl_seconds]
        )
        return timedelta(seconds=min(max(lives), longest_svid_ttl(self._ca_ttl_seconds)))
