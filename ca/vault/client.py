"""The one way of plugins to Vault or OpenBao: logged in, bounded in time, and clear about what is wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from ca.errors import BurgeeError, ConfigError, Denied, NotFound, Unavailable
from ca.ports import Clock
from ca.runtime import log
from ca.vault.config import VaultConfig
from ca.vault.outage import Outage

if TYPE_CHECKING:
    from ca.vault.keeper import Keeper
    from ca.vault.link import Action, Link

T = TypeVar("T")

logger = log.get("vault")

WORKERS = 8
"""Requests under way at the same time."""

SLOW_SECONDS = 30.0

LONGEST_SLEEP_SECONDS = 5.0
SHORTEST_SLEEP_SECONDS = 0.2
TROUBLE_SLEEP_SECONDS = 1.0
SILENT_SECONDS = 4.0
"""After so long without any answer Vault is asked whether it is there."""

_HOPELESS = frozenset({"VAULT_LOGIN_FAILED", "VAULT_TLS", "VAULT_FILE"})
"""At the start: somebody must change something first."""


class VaultClient:
    """Implements ca.ports.Connected. Fit for several threads and for the event loop, which it never blocks.

    Paths are those of Vault's HTTP API without `/v1/`. Answers are the `data` part. All calls raise Unavailable while
    Vault is away (VAULT_UNREACHABLE, VAULT_TIMEOUT, VAULT_SEALED, VAULT_TLS, VAULT_REDIRECT: at once, after the first)
    or does not let us in (VAULT_LOGIN_FAILED, VAULT_NOT_LOGGED_IN, VAULT_FILE), or fails (VAULT_FAILED, VAULT_BUSY,
    VAULT_ANSWER); Denied for what our token may not do (VAULT_DENIED; a new log-in was tried) or what Vault refuses as
    wrong (VAULT_REFUSED).
    """

    def __init__(
        self, config: VaultConfig, *, clock: Clock, purpose: str, jitter: Callable[[], float] = random.random
    ) -> None:
        """`purpose` says in logs and metrics whose log-in this is; `jitter` gives 0 to 1.

        Raises ConfigError (VAULT_CLIENT_MISSING).
        """
        self._keeper = _keeper(config, clock, purpose)
        self._clock = clock
        self._purpose = purpose
        self._jitter = jitter
        self._outage = Outage(patience_seconds=config.timeout_seconds + 1)
        self._longest_seconds = 2 * config.timeout_seconds + 1
        self._pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix=f"vault-{purpose}")

    async def read(self, path: str) -> dict[str, Any] | None:
        """None where there is nothing."""
        return await self._wait(self._pool.submit(_or_none, self._call, "read", path))

    async def list(self, path: str) -> list[str]:
        """The names below a path; empty where there is nothing."""
        found = await self._wait(self._pool.submit(_or_none, self._call, "list", path))
        keys = (found or {}).get("keys", [])
        return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []

    async def write(self, path: str, data: Mapping[str, Any], *, slow: bool = False) -> dict[str, Any]:
        """Raises NotFound, besides, where the path is none (VAULT_NOT_FOUND).

        `slow` is for what Vault computes long at, such as an RSA key: it may take 30 seconds.
        """
        timeout = SLOW_SECONDS if slow else None
        longest = self._longest_seconds + (timeout or 0)
        return await self._wait(self._pool.submit(self._call, "write", path, data, timeout), longest)

    async def delete(self, path: str) -> None:
        """Nothing to delete is fine."""
        await self._wait(self._pool.submit(_or_none, self._call, "delete", path))

    def write_blocking(self, path: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """`write` for a thread that may wait, as a signer's."""
        future = self._pool.submit(self._call, "write", path, data)
        try:
            return future.result(self._longest_seconds)
        except TimeoutError:
            future.cancel()
            raise self._too_slow(self._longest_seconds) from None

    async def start(self) -> None:
        """Logs in. Raises ConfigError where nothing would work until somebody changes it, else Unavailable."""
        try:
            await self._wait(self._pool.submit(self._watched, self._keeper.log_in))
        except BurgeeError as error:
            if error.reason not in _HOPELESS:
                raise
            raise ConfigError(error.detail, reason=error.reason, hint=error.hint) from error

    async def run(self) -> None:
        """Keeps the log-in, and finds out when Vault is back; for ever."""
        while True:
            await self._clock.sleep(self._pause())
            if self._outage.error is not None:
                self._outage.trying(self._clock.monotonic())
            try:
                await self._wait(self._pool.submit(self._watched, self._look_after))
            except BurgeeError as error:
                logger.debug("vault is not at our service", purpose=self._purpose, reason=error.reason)

    async def close(self) -> None:
        """Revokes the token that we logged in for, unless Vault is away."""
        if self._outage.error is None:
            try:
                await self._wait(self._pool.submit(self._keeper.close))
            except BurgeeError as error:
                logger.debug("vault token not revoked", purpose=self._purpose, reason=error.reason)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def problem(self) -> BurgeeError | None:
        return self._outage.error or self._keeper.problem

    def _look_after(self) -> None:
        """In a thread. Whoever asks for nothing still learns that Vault is away, or that our token is worth nothing."""
        silent_seconds = self._clock.monotonic() - self._outage.answered_at
        if self._outage.error is not None or silent_seconds > SILENT_SECONDS:
            self._keeper.probe()
        self._keeper.tend()

    def _pause(self) -> float:
        """Sooner while something is wrong; never at the same moment as all others."""
        if self.problem() is not None:
            return TROUBLE_SLEEP_SECONDS * (0.5 + self._jitter())
        due = self._keeper.due_at
        left = LONGEST_SLEEP_SECONDS if due is None else due - self._clock.monotonic()
        return min(max(left, SHORTEST_SLEEP_SECONDS), LONGEST_SLEEP_SECONDS)

    def _call(
        self,
        action: Action,
        path: str,
        data: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """In a thread. What is denied is asked for once more with a new log-in."""
        self._outage.enter(self._clock.monotonic())
        link = self._keeper.link
        try:
            return self._request(link, action, path, data, timeout_seconds)
        except Denied as error:
            other = None if error.reason != "VAULT_DENIED" else self._watched(lambda: self._keeper.replace(link))
            if other is None:
                raise
        return self._request(other, action, path, data, timeout_seconds)

    def _request(
        self, link: Link, action: Action, path: str, data: Mapping[str, Any] | None, timeout_seconds: float | None
    ) -> dict[str, Any]:
        answer = self._watched(lambda: link.request(action, path, data, timeout_seconds=timeout_seconds))
        found = answer.get("data")
        return found if isinstance(found, dict) else {}

    def _watched(self, ask: Callable[[], T]) -> T:
        """Whatever Vault answers shows that it is there."""
        try:
            answer = ask()
        except BurgeeError as error:
            self._failed(error)
            raise
        self._there()
        return answer

    def _failed(self, error: BurgeeError) -> None:
        if isinstance(error, Denied | NotFound):
            self._there()
        elif self._outage.failed(error, self._clock.monotonic()):
            logger.warning("vault is away", purpose=self._purpose, reason=error.reason, detail=error.detail)

    def _there(self) -> None:
        away_seconds = self._outage.ended(self._clock.monotonic())
        if away_seconds is not None:
            logger.info("vault is back", purpose=self._purpose, away_seconds=round(away_seconds, 1))

    async def _wait(self, future: Future[T], longest_seconds: float | None = None) -> T:
        longest_seconds = longest_seconds or self._longest_seconds
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), longest_seconds)
        except TimeoutError:
            raise self._too_slow(longest_seconds) from None

    def _too_slow(self, seconds: float) -> Unavailable:
        """For an answer that comes in drops; what hangs altogether was given up before."""
        error = Unavailable(
            f"vault did not answer within {seconds:.0f} seconds",
            reason="VAULT_TIMEOUT",
            hint="is it overloaded, or stopped?",
        )
        self._failed(error)
        return error


def _or_none(call: Callable[[Action, str], dict[str, Any]], action: Action, path: str) -> dict[str, Any] | None:
    try:
        return call(action, path)
    except NotFound:
        return None


def _keeper(config: VaultConfig, clock: Clock, purpose: str) -> Keeper:
    """hvac is an extra: who has no Vault does not install it."""
    try:
        from ca.vault.keeper import Keeper
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("hvac", "requests", "urllib3"):
            raise
        raise ConfigError(
            "the Python package hvac is not installed",
            reason="VAULT_CLIENT_MISSING",
            hint="pip install 'burgee[vault]', or: pip install hvac",
        ) from error
    return Keeper(config, clock=clock, purpose=purpose)
