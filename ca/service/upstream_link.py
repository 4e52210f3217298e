"""The upstream authority as the rotation sees it: calls end in time, answers are proved, failures are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import TypeVar

from ca.errors import BurgeeError, Code, Unavailable, Unimplemented
from ca.identity.bundle import JwtAuthority
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock, Connected, Finding, UpstreamAuthority, UpstreamBundle
from ca.runtime import log, metrics
from ca.upstream.proof import Need, ProvedCa, prove

T = TypeVar("T")

logger = log.get("upstream")

MINT_SECONDS = 20.0
BUNDLE_SECONDS = 10.0
PUBLISH_SECONDS = 5.0
"""How long each call may take; then it is given up, wherever it hangs."""

_failures = metrics.counter("upstream_failures", "Calls to the upstream authority that failed.", ["call", "reason"])
_answered = metrics.gauge(
    "upstream_answered_timestamp_seconds", "When the upstream last answered, Unix time.", ["call"]
)


class UpstreamLink:
    """`name` is the plugin's. `patience` scales the times that calls may take (tests are impatient)."""

    def __init__(
        self, upstream: UpstreamAuthority, *, name: str, trust_domain: TrustDomain, clock: Clock, patience: float = 1.0
    ) -> None:
        self._upstream = upstream
        self._trust_domain = trust_domain
        self._clock = clock
        self._patience = patience
        self.name = name
        self.failures: dict[str, tuple[datetime, BurgeeError]] = {}
        """Call → since when it fails, and how."""

    async def start(self) -> None:
        """Tries the connection. Raises ConfigError for what cannot work until somebody changes it; what may pass is
        only told: whoever needs the upstream now says so."""
        if not isinstance(self._upstream, Connected):
            return
        try:
            await self._upstream.start()
        except Unavailable as error:
            logger.warning("upstream cannot be reached yet", reason=error.reason, detail=error.detail, hint=error.hint)

    async def run(self) -> None:
        """Keeps the connection, where there is one to keep, until cancelled."""
        if isinstance(self._upstream, Connected):
            await self._upstream.run()

    async def close(self) -> None:
        if isinstance(self._upstream, Connected):
            await self._upstream.close()

    async def mint(self, csr: bytes, *, public_key_der: bytes, need: Need) -> ProvedCa:
        """A new authority for this key, proved. Raises Unavailable, Denied, or FailedPrecondition for an answer that
        cannot be used (UPSTREAM_*)."""

        async def minted() -> ProvedCa:
            answer = await self._upstream.mint(csr, need.ttl_seconds)
            now = self._clock.now()
            # Signatures are checked: a hostile answer must not keep the event loop.
            return await asyncio.to_thread(
                prove, answer, trust_domain=self._trust_domain, public_key_der=public_key_der, need=need, now=now
            )

        proved = await self._call("mint", minted(), MINT_SECONDS)
        for warning in proved.warnings:
            logger.warning(
                "upstream authority has a limit",
                reason="UPSTREAM_WARNING",
                what=warning.what,
                detail=warning.detail,
                hint=warning.hint,
            )
        return proved

    async def bundle(self) -> UpstreamBundle:
        """What the upstream publishes now."""
        return await self._call("bundle", self._upstream.bundle(), BUNDLE_SECONDS)

    async def publish(self, key: JwtAuthority) -> Sequence[JwtAuthority]:
        """All JWT authorities that the upstream then keeps; the key alone where it keeps none."""
        try:
            return await self._call("publish_jwt_key", self._upstream.publish_jwt_key(key), PUBLISH_SECONDS)
        except Unimplemented:
            self.failures.pop("publish_jwt_key", None)
            return (key,)

    async def check(self) -> Sequence[Finding]:
        """The plugin's own rehearsal."""
        return await self._upstream.check()

    def problem(self) -> BurgeeError | None:
        """What is wrong with the connection, else the failure that lasts longest."""
        found = self._upstream.problem() if isinstance(self._upstream, Connected) else None
        if found is not None:
            return found
        return min(self.failures.values(), key=lambda failure: failure[0])[1] if self.failures else None

    async def _call(self, call: str, work: Awaitable[T], seconds: float) -> T:
        try:
            async with asyncio.timeout(seconds * self._patience):
                answer = await work
        except TimeoutError as error:
            raise self._failed(call, _silent(call, seconds * self._patience)) from error
        except BurgeeError as error:
            raise self._failed(call, error) from error.__cause__
        except Exception as error:
            if call not in self.failures:  # the traceback of the first of many
                logger.error("upstream plugin failed", reason="UPSTREAM_BROKEN", call=call, exc_info=error)
            broken = Unavailable(
                f"the upstream plugin `{self.name}` failed: {type(error).__name__}", reason="UPSTREAM_BROKEN"
            )
            raise self._failed(call, broken) from error
        if self.failures.pop(call, None) is not None:
            logger.info("upstream answers again", call=call)
        _answered.labels(call).set(self._clock.now().timestamp())
        return answer

    def _failed(self, call: str, error: BurgeeError) -> BurgeeError:
        """Kept, counted, and logged where it differs from what was known."""
        if error.code is Code.UNIMPLEMENTED:
            return error
        since, known = self.failures.get(call, (self._clock.now(), None))
        if known is None or (known.reason, known.detail) != (error.reason, error.detail):
            logger.warning("upstream call failed", call=call, reason=error.reason, detail=error.detail, hint=error.hint)
        self.failures[call] = since, error
        _failures.labels(call, error.reason).inc()
        return error


def _silent(call: str, seconds: float) -> Unavailable:
    return Unavailable(
        f"the upstream did not answer {call} within {seconds:g} s",
        reason="UPSTREAM_SILENT",
        hint="is it up, unsealed and reachable from here? see `caadmin upstream check`",
    )
