"""JWT-SVIDs, kept by entry and audience set while they are fresh, so that a silent server is not noticed at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ca.errors import BurgeeError, Unavailable
from ca.identity import base64url
from ca.identity.entry import RegistrationEntry
from ca.ports import Clock
from ca.runtime.log import get
from sds.limits import LimitsConfig
from sds.shares import FairQueue

log = get("sds.jwt")

FETCH_SECONDS = 10.0
"""How long a caller waits for a token that is not here, its workload's turn to ask included."""


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


@dataclass(frozen=True, slots=True)
class _Held:
    """A token, and the share of the room that it takes: of who asked for it first."""

    issued: JwtIssued
    share: str


class JwtCache:
    """So many tokens in all and so many for each workload; the least recently asked for goes first: of the workload
    that is at its limit, or of the one that has most. Asking the server goes round the workloads. Never written to
    disk."""

    def __init__(self, *, issuer: JwtIssuer, clock: Clock, limits: LimitsConfig | None = None) -> None:
        self._issuer = issuer
        self._clock = clock
        self._limits = limits or LimitsConfig()
        self._tokens: OrderedDict[Key, _Held] = OrderedDict()
        self._shares: Counter[str] = Counter()
        self._turns = FairQueue(total=self._limits.max_jwt_requests, each=self._limits.max_jwt_requests_per_workload)
        self._fetching: dict[tuple[Key, str], asyncio.Task[JwtIssued]] = {}
        self._quiet_until = 0.0
        self._trusted: frozenset[str] | None = None

    def __len__(self) -> int:
        return len(self._tokens)

    async def get(self, entry: RegistrationEntry, audience: Sequence[str], *, share: str = "") -> str:
        """A token for exactly these audiences (in the order in which they were first asked for, as SPIRE's agent).

        A fresh one is returned at once and, past half of its life, renewed behind the caller's back; an expired one
        is never returned. An entry with `jwt_svid_include_jti` promises a new `jti` each time: it is not cached.
        `share` names the workload that asks, whose room a new token takes.
        Raises Unavailable (JWT_SVID_UNAVAILABLE) or what the server refused it with.
        """
        key = (entry.id, entry.revision_number, frozenset(audience))
        held = None if entry.jwt_svid_include_jti else self._tokens.get(key)
        cached = held.issued if held is not None else None
        now = self._clock.now()
        if cached is not None and cached.expires_at > now:
            self._tokens.move_to_end(key)
            if is_stale(cached, now) and self._clock.monotonic() >= self._quiet_until:
                self._fetch(key, audience, share).add_done_callback(self._be_quiet_after_failure)
            return cached.token
        if entry.jwt_svid_include_jti:
            return (await self._request(entry.id, audience, share)).token
        return (await asyncio.shield(self._fetch(key, audience, share))).token

    def forget(self, entry_ids: frozenset[str]) -> None:
        """Drop the tokens of these entries."""
        self._keep(lambda key, issued: key[0] not in entry_ids)

    def retain(self, entry_ids: frozenset[str]) -> None:
        """Drop the tokens of all other entries."""
        self._keep(lambda key, issued: key[0] in entry_ids)

    def trust(self, key_ids: frozenset[str]) -> None:
        """Drop the tokens that were signed with any other key: it was tainted or taken out of the bundle. Nor is one
        kept that was under way meanwhile: its caller alone gets it."""
        self._trusted = key_ids
        self._keep(lambda key, issued: key_id(issued.token) in key_ids)

    def _keep(self, good: Callable[[Key, JwtIssued], bool]) -> None:
        for key, held in list(self._tokens.items()):
            if not good(key, held.issued):
                self._remove(key)

    def close(self) -> None:
        """Stop asking and forget every token."""
        for task in self._fetching.values():
            task.cancel()
        self._tokens.clear()
        self._shares.clear()

    def _fetch(self, key: Key, audience: Sequence[str], share: str) -> asyncio.Task[JwtIssued]:
        """One request at a time for each key and workload; whoever comes meanwhile waits for the same one."""
        task = self._fetching.get((key, share))
        if task is None:
            task = self._fetching[key, share] = asyncio.create_task(self._fetch_now(key, audience, share))
            task.add_done_callback(_look_at)
        return task

    async def _fetch_now(self, key: Key, audience: Sequence[str], share: str) -> JwtIssued:
        try:
            issued = await self._request(key[0], audience, share)
        finally:
            del self._fetching[key, share]
        if key in self._tokens:
            self._remove(key)
        if self._trusted is not None and key_id(issued.token) not in self._trusted:
            return issued
        self._tokens[key] = _Held(issued, share)
        self._shares[share] += 1
        self._drop(share)
        return issued

    async def _request(self, entry_id: str, audience: Sequence[str], share: str) -> JwtIssued:
        try:
            async with asyncio.timeout(FETCH_SECONDS), self._turns.turn(share):
                issued = await self._issuer.new_jwt_svid(entry_id, audience)
        except TimeoutError:
            raise _unavailable("the server did not answer in time") from None
        except Unavailable as error:
            raise _unavailable(error.detail) from error
        if issued.expires_at <= self._clock.now():
            raise _unavailable("the server sent an expired token")
        return issued

    def _be_quiet_after_failure(self, task: asyncio.Task[JwtIssued]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._quiet_until = self._clock.monotonic() + RENEWAL_RETRY_SECONDS

    def _drop(self, share: str) -> None:
        """Make room after a token came in for `share`: expired ones first, wherever they are."""
        if self._shares[share] <= self._limits.max_jwt_svids_per_workload and self._fits():
            return
        now = self._clock.now()
        self._keep(lambda key, issued: issued.expires_at > now)
        if self._shares[share] > self._limits.max_jwt_svids_per_workload:
            self._remove_oldest(share)
        if not self._fits():
            self._remove_oldest(max(self._shares, key=lambda name: self._shares[name]))

    def _fits(self) -> bool:
        return len(self._tokens) <= self._limits.max_jwt_svids

    def _remove_oldest(self, share: str) -> None:
        self._remove(next(key for key, held in self._tokens.items() if held.share == share))

    def _remove(self, key: Key) -> None:
        share = self._tokens.pop(key).share
        self._shares[share] -= 1
        if not self._shares[share]:
            del self._shares[share]


def _unavailable(detail: str) -> Unavailable:
    return Unavailable(f"could not fetch the JWT-SVID: {detail}", reason="JWT_SVID_UNAVAILABLE")


def _look_at(task: asyncio.Task[JwtIssued]) -> None:
    """A renewal behind the caller's back may fail: the token it has is good for the other half of its life."""
    if not task.cancelled() and isinstance(error := task.exception(), BurgeeError):
        log.info("a JWT-SVID could not be renewed", reason=error.reason, detail=error.detail)
