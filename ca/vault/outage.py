"""Whether Vault is away: while it is, calls fail at once instead of each waiting for the same timeout."""

from __future__ import annotations

import threading

from ca.errors import BurgeeError

AWAY = frozenset({"VAULT_UNREACHABLE", "VAULT_TIMEOUT", "VAULT_SEALED", "VAULT_TLS", "VAULT_REDIRECT"})
"""Reasons that are true of every call, whatever it asks for."""


class Outage:
    """Fit for several threads. `now` is the monotonic clock's, in seconds; so is `answered_at`, of the last answer.

    `patience_seconds` is how long after a try, which may still be going on, no call is let through to try again.
    """

    def __init__(self, *, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._error: BurgeeError | None = None
        self._since = 0.0
        self._tried_at = 0.0
        self.answered_at = 0.0

    @property
    def error(self) -> BurgeeError | None:
        """A new copy of the failure that stands for all of them now: an exception that is raised twice keeps both
        stories."""
        error = self._error
        return None if error is None else copy_of(error)

    def enter(self, now: float) -> None:
        """Before a call: raises the standing failure, unless this call is the one that is to find out."""
        with self._lock:
            error = self._error
            if error is None or now - self._tried_at >= self._patience_seconds:
                self._tried_at = now
                return
        raise copy_of(error)

    def trying(self, now: float) -> None:
        """Somebody is about to find out."""
        self._tried_at = now

    def failed(self, error: BurgeeError, now: float) -> bool:
        """After a call: tells whether an outage begins with this failure."""
        if error.reason not in AWAY:
            return False
        with self._lock:
            begins = self._error is None
            self._error, self._tried_at = error, now
            if begins:
                self._since = now
            return begins

    def ended(self, now: float) -> float | None:
        """After a call that Vault answered, whatever it said: how long it was away, if it was, in seconds."""
        self.answered_at = now
        if self._error is None:
            return None
        with self._lock:
            was, self._error = self._error, None
            return None if was is None else now - self._since


def copy_of(error: BurgeeError) -> BurgeeError:
    return type(error)(
        error.detail, reason=error.reason, hint=error.hint, retry_after_seconds=error.retry_after_seconds
    )
