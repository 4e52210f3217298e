"""Key sets of foreign issuers: fetched by the server alone, from hosts that an administrator listed.

What was fetched last holds until something newer is there, over restarts, too; an address that cannot be fetched is
asked again after a while, and not by every write that names it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ca.errors import BurgeeError, Unavailable
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.runtime.health import Problem
from ca.runtime.https import HttpClient, context_of
from ca.runtime.policy_config import PolicyConfig
from ca.store.store import Store

MAX_BYTES = 64 << 10
MAX_ADDRESSES = 100
"""Fetched; of more in the book those that are known, and then those that come first. An agent may get all of them."""
AT_ONCE = 4
REFRESH_SECONDS = 300.0
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 5.0, 300.0
TIMEOUT_SECONDS = 10.0

logger = log.get("policy.keys")
_failures = metrics.counter("policy_key_set_failures", "Key sets that could not be fetched.")


@dataclass(slots=True)
class _Due:
    at: float
    failures: int = 0
    problem: str = ""


class KeySets:
    """`sets` has what is known, by address. `wanted` says what is needed now."""

    def __init__(
        self, *, store: Store, config: PolicyConfig, clock: Clock, wanted: Callable[[], Iterable[str]]
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._wanted = wanted
        self.sets: Mapping[str, str] = {}
        self._due: dict[str, _Due] = {}
        self._wake = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._context: ssl.SSLContext | None = None

    async def load(self) -> None:
        """What was fetched before this start."""
        self.sets = await self._store.policies.key_sets()

    def on_changed(self, listener: Callable[[], None]) -> None:
        """Calls `listener` when a set is new."""
        self._listeners.append(listener)

    def wake(self) -> None:
        """Others may be wanted now."""
        self._wake.set()

    def problem(self) -> Problem | None:
        """For the health report."""
        failed = sorted(address for address, due in self._due.items() if due.failures)
        if not failed:
            return None
        detail = f"{len(failed)} key sets cannot be fetched, one of them {self._due[failed[0]].problem}"
        return Problem(
            reason="KEY_SET_UNREACHABLE",
            detail=detail,
            hint="tokens are checked against what was fetched before, if anything was",
        )

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            self._take_wanted()
            try:
                await self._fetch_due()
                await self._forget()
            except Unavailable as error:  # the store is away
                logger.warning("cannot keep key sets now", reason=error.reason, detail=error.detail)
            await self._pause()

    def _take_wanted(self) -> None:
        known = {**self._due, **self.sets}  # who is there already gives way to nobody
        wanted = sorted(set(self._wanted()), key=lambda address: (address not in known, address))[:MAX_ADDRESSES]
        self._due = {address: self._due.get(address) or _Due(self._clock.monotonic()) for address in wanted}

    async def _fetch_due(self) -> None:
        now, turns = self._clock.monotonic(), asyncio.Semaphore(AT_ONCE)

        async def one(address: str, due: _Due) -> bool:
            async with turns:
                return await self._fetch(address, due)

        done = await asyncio.gather(*(one(address, due) for address, due in self._due.items() if due.at <= now))
        if any(done):
            for listener in self._listeners:
                listener()

    async def _fetch(self, address: str, due: _Due) -> bool:
        """Whether it is another than before. A failure keeps what was there."""
        try:
            text = await self._ask(address)
        except BurgeeError as error:
            due.failures += 1
            due.problem = f"{address}: {error.detail}"
            pause = min(FIRST_RETRY_SECONDS * 2 ** min(due.failures - 1, 10), MAX_RETRY_SECONDS)
            due.at = self._clock.monotonic() + pause
            _failures.inc()
            logger.warning("cannot fetch a key set", reason=error.reason, address=address, detail=error.detail)
            return False
        due.failures, due.problem, due.at = 0, "", self._clock.monotonic() + REFRESH_SECONDS
        if self.sets.get(address) == text:
            return False
        self.sets = {**self.sets, address: text}
        try:
            await self._store.policies.put_key_set(address, text, self._clock.now())
        except Unavailable as error:  # agents are told all the same: a key may have been taken back
            logger.warning("cannot keep a key set now", reason=error.reason, address=address, detail=error.detail)
        return True

    async def _forget(self) -> None:
        """What nobody wants any more goes when there is too much of it; it might be wanted again."""
        unwanted = sorted(self.sets.keys() - self._due.keys())
        for address in unwanted[: max(0, len(self.sets) - MAX_ADDRESSES)]:
            await self._store.policies.delete_key_set(address)
            self.sets = {known: text for known, text in self.sets.items() if known != address}

    async def _ask(self, address: str) -> str:
        parts = urlsplit(address)
        if parts.hostname not in self._config.jwks_hosts:
            raise Unavailable("its host is not on the list `policy.jwks_hosts`", reason="KEY_SET_HOST")
        if parts.scheme != "https" and not self._config.jwks_plain_http:
            raise Unavailable("it is not https, and `policy.jwks_plain_http` is not set", reason="KEY_SET_HOST")
        if self._context is None:
            self._context = context_of(ca_file=self._config.jwks_ca_file)
        client = HttpClient(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            source="the host of the key set",
            context=self._context,
            timeout_seconds=TIMEOUT_SECONDS,
            max_bytes=MAX_BYTES,
        )
        try:
            path = parts.path or "/"
            answer = await client.request("GET", f"{path}?{parts.query}" if parts.query else path)
        finally:
            client.close()
        if answer.status != 200:
            raise Unavailable(f"it answered with status {answer.status}", reason="KEY_SET_STATUS")
        return _key_set(answer.body)

    async def _pause(self) -> None:
        now = self._clock.monotonic()
        left = min((due.at - now for due in self._due.values()), default=REFRESH_SECONDS)
        sleeping = asyncio.ensure_future(self._clock.sleep(max(left, 0.01)))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((sleeping, woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            woken.cancel()


def _key_set(body: bytes) -> str:
    """RFC 7517 §5, written as we write it. Raises Unavailable."""
    try:
        found = json.loads(body)
        keys = found["keys"]
        good = isinstance(keys, list) and all(isinstance(key, dict) and "kty" in key for key in keys)
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise Unavailable("what it answered is no JSON Web Key Set", reason="KEY_SET_MALFORMED")
    return json.dumps({"keys": keys}, sort_keys=True, separators=(",", ":"))
