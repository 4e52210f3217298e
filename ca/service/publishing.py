"""Keeps each published copy of the trust bundle as it should be: at once on a change, and again and again besides."""

from __future__ import annotations

import asyncio

from ca.errors import BurgeeError
from ca.identity.bundle import TrustBundle
from ca.ports import BundlePublisher, Clock
from ca.runtime import log, metrics
from ca.runtime.health import Problem
from ca.service.trust import Trust

logger = log.get("publisher")

LOOK_SECONDS = 30.0
"""How often a copy is looked at that nothing is known to have happened to."""
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 10.0

_written = metrics.counter("bundle_published", "Copies of the trust bundle written, by publisher.", ["publisher"])
_failed = metrics.counter(
    "bundle_publish_failed", "Attempts to look after a copy that failed, by reason code.", ["publisher", "reason"]
)
_behind = metrics.gauge(
    "bundle_publish_behind_seconds", "For how long a copy may differ from the trust bundle.", ["publisher"]
)


class Publishing:
    """One publisher under the name that the configuration gives it."""

    def __init__(self, name: str, publisher: BundlePublisher, *, trust: Trust, clock: Clock) -> None:
        self.name = name
        self._publisher = publisher
        self._trust = trust
        self._clock = clock
        self._changed = asyncio.Event()
        self._stale_since: float | None = clock.monotonic()
        self._failures = 0
        self._error: BurgeeError | None = None
        trust.on_change(self._on_change)
        _behind.labels(name).set_function(self._behind)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._changed.clear()
                await self._look()
                await self._wait(self._pause())
        finally:
            await self._publisher.close()

    def problem(self) -> Problem | None:
        """What stands in the way of the copy."""
        error = self._error
        if error is None:
            return None
        detail = f"the trust bundle is not published to {self._publisher.where}: {error.detail}"
        return Problem(reason=error.reason, detail=detail, hint=error.hint)

    async def _look(self) -> None:
        began = self._clock.monotonic()
        try:
            bundle = self._trust.own
            if not bundle.x509_authorities:
                return  # a copy of nothing would make everybody distrust everybody
            wrote = await self._publisher.publish(bundle)
        except BurgeeError as error:
            self._note_failure(error, began)
            return
        if wrote:
            _written.labels(self.name).inc()
            logger.info("trust bundle published", publisher=self.name, where=self._publisher.where)
        self._failures, self._error = 0, None
        if not self._changed.is_set():
            self._stale_since = None

    def _note_failure(self, error: BurgeeError, began: float) -> None:
        """Told once for each reason: an outage is one line in the log."""
        _failed.labels(self.name, error.reason).inc()
        if self._error is None or self._error.reason != error.reason:
            logger.warning(
                "trust bundle not published",
                publisher=self.name,
                where=self._publisher.where,
                reason=error.reason,
                detail=error.detail,
                exc_info=error.__cause__,
            )
        self._failures += 1
        self._error = error
        if self._stale_since is None:
            self._stale_since = began

    def _pause(self) -> float:
        if not self._failures:
            return LOOK_SECONDS
        return min(FIRST_BACKOFF_SECONDS * 2.0 ** min(self._failures - 1, 10), MAX_BACKOFF_SECONDS)

    async def _wait(self, seconds: float) -> None:
        """That long, or until the bundle changes."""
        waits = {asyncio.ensure_future(wait) for wait in (self._clock.sleep(seconds), self._changed.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _on_change(self, bundle: TrustBundle) -> None:
        if bundle.trust_domain != self._trust.trust_domain:
            return
        if self._stale_since is None:
            self._stale_since = self._clock.monotonic()
        self._changed.set()

    def _behind(self) -> float:
        return 0.0 if self._stale_since is None else self._clock.monotonic() - self._stale_since
