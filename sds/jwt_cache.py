"""JWT-SVIDs, kept by entry and audience set while they are fresh, so that a silent server is not noticed at once."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ca.errors import BurgeeError, Unavailable
from ca.identity import base64url
from ca.identity.entry import RegistrationEntry
from ca.ports import Clock
from ca.runtime.log import get

log = get("sds.jwt")

FETCH_SECONDS = 10.0
"""How long a caller waits for a token that is not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtIssued:
    """A token from the server and its life, by the server's clock."""

    token: str
    issued_at: datetime
    expires_at: datetime


class JwtIssuer(Protocol):
    """Asks the server for a JWT-SVID. Raises Unavailable when nobody answers, Denied when it is refused."""

    async def new_jwt_svid(self, entry_id: str, audience: Sequence[str]) -> JwtIssued: ...


RENEWAL_RETRY_SECONDS = 1.0
"""After a renewal failed, how long cached tokens are served without asking the server again."""

Key = tuple[str, int, frozenset[str]]


def key_id(token: str) -> str:
    """The `kid` of a token's header; empty when it has none or is no token."""
    try:
        return str(json.loads(base64url.decode(token.partition(".")[0]))["kid"])
    except (ValueError, KeyError, TypeError):
        return ""


def is_stale(issued: JwtIssued, now: datetime) -> bool:
    """Past the half of its life: still good, and time for the next."""
    return now >= issued.issued_at + (issued.expires_at - issued.issued_at) / 2


class JwtCache:
    """At most `limit` tokens, the least recently asked for goes first. Never written to disk."""

    def __init__(self, *, issuer: JwtIssuer, clock: Clock, limit: int = 1000) -> None:
        self._issuer = issuer
        self._clock = clock
        self._limit = limit
        self._tokens: OrderedDict[Key, JwtIssued] = OrderedDict()
        self._fetching: dict[Key, asyncio.Task[JwtIssued]] = {}
        self._quiet_until = 0.0

    def __len__(self) -> int:
        return len(self._tokens)

    async def get(self, entry: RegistrationEntry, audience: Sequence[str]) -> str:
        """A token for exactly these audiences (in the order in which they were first asked for, as SPIRE's agent).

        A fresh one is returned at once and, past half of its life, renewed behind the caller's back; an expired one
        is never returned. An entry with `jwt_svid_include_jti` promises a new `jti` each time: it is not cached.
        Raises Unavailable (JWT_SVID_UNAVAILABLE) or what the server refused it with.
        """
        key = (entry.id, entry.revision_number, frozenset(audience))
        cached = None if entry.jwt_svid_include_jti else self._tokens.get(key)
        now = self._clock.now()
        if cached is not None and cached.expires_at > now:
            self._tokens.move_to_end(key)
            if is_stale(cached, now) and self._clock.monotonic() >= self._quiet_until:
                self._fetch(key, audience).add_done_callback(self._be_quiet_after_failure)
            return cached.token
        if entry.jwt_svid_include_jti:
            return (await self._request(entry.id, audience)).token
        return (await asyncio.shield(self._fetch(key, audience))).token

    def forget(self, entry_ids: frozenset[str]) -> None:
        """Drop the tokens of these entries."""
        self._keep(lambda key, issued: key[0] not in entry_ids)

    def retain(self, entry_ids: frozenset[str]) -> None:
        """Drop the tokens of all other entries."""
        self._keep(lambda key, issued: key[0] in entry_ids)

    def trust(self, key_ids: frozenset[str]) -> None:
        """Drop the tokens that were signed with any other key: it was tainted or taken out of the bundle."""
        self._keep(lambda key, issued: key_id(issued.token) in key_ids)

    def _keep(self, good: Callable[[Key, JwtIssued], bool]) -> None:
        self._tokens = OrderedDict((key, issued) for key, issued in self._tokens.items() if good(key, issued))

    def close(self) -> None:
        """Stop asking and forget every token."""
        for task in self._fetching.values():
            task.cancel()
        self._tokens.clear()

    def _fetch(self, key: Key, audience: Sequence[str]) -> asyncio.Task[JwtIssued]:
        """One request at a time for each key; whoever comes meanwhile waits for the same one."""
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.create_task(self._fetch_now(key, audience))
            task.add_done_callback(_look_at)
        return task

    async def _fetch_now(self, key: Key, audience: Sequence[str]) -> JwtIssued:
        try:
            issued = await self._request(key[0], audience)
        finally:
            del self._fetching[key]
        self._tokens[key] = issued
        self._tokens.move_to_end(key)
        self._drop(self._clock.now())
        return issued

    async def _request(self, entry_id: str, audience: Sequence[str]) -> JwtIssued:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                issued = await self._issuer.new_jwt_svid(entry_id, audience)
        except TimeoutError:
            raise _unavailable("the server did not answer") from None
        except Unavailable as error:
            raise _unavailable(error.detail) from error
        if issued.expires_at <= self._clock.now():
            raise _unavailable("the server sent an expired token")
        return issued

    def _be_quiet_after_failure(self, task: asyncio.Task[JwtIssued]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._quiet_until = self._clock.monotonic() + RENEWAL_RETRY_SECONDS

    def _drop(self, now: datetime) -> None:
        for key in [key for key, issued in self._tokens.items() if issued.expires_at <= now]:
            del self._tokens[key]
        while len(self._tokens) > self._limit:
            self._tokens.popitem(last=False)


def _unavailable(detail: str) -> Unavailable:
    return Unavailable(f"could not fetch the JWT-SVID: {detail}", reason="JWT_SVID_UNAVAILABLE")


def _look_at(task: asyncio.Task[JwtIssued]) -> None:
    """A renewal behind the caller's back may fail: the token it has is good for the other half of its life."""
    if not task.cancelled() and isinstance(error := task.exception(), BurgeeError):
        log.info("a JWT-SVID could not be renewed", reason=error.reason, detail=error.detail)
