"""When a workload's X.509-SVID is due, and the loop that asks the server for those that are."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.errors import BurgeeError, Internal, Unauthenticated
from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.lineage import issuer_ids
from ca.identity.spiffe_id import TrustDomain, server_id
from ca.identity.svid import parse_x509_svid, verify_x509_svid
from ca.ports import Clock
from ca.runtime.log import get
from sds.backoff import at_least
from sds.cache import Cache
from sds.clock_watch import ClockWatch, ahead
from sds.condition import Condition
from sds.keys import KeyPool, WorkloadKey, certificate_request
from sds.taint import TaintWatch
from sds.views import WorkloadSvid, asked_for
from sds.waiting import sleep_or

log = get("sds.rotation")

JITTER = 0.1
"""Rotation falls within ±10 % of the lifetime's half, so that what was issued together is not renewed together."""

BATCH = 500
"""CSRs in one BatchNewX509SVID: the server's own limit."""

FIRST_RETRY_SECONDS = 0.5
REFUSED_RETRY_SECONDS = 30.0
"""Longest pause after a server refused an entry: its registration has to change, and that is pushed."""

UNREACHABLE_RETRY_SECONDS = 5.0
"""Longest pause while no server answers: once it is back, whoever waits for an SVID gets it while waiting."""

TAINTED_RETRY_SECONDS = 5.0


def rotate_at(issued_at: datetime, not_after: datetime, jitter: float) -> datetime:
    """Half of the time between issue and notAfter, moved by `jitter` (-1 to 1) tenths of it.

    `issued_at` is when the SVID was issued, never its backdated notBefore. Never within a quarter of a second, however
    short the life: a server that hands out what is all but expired must not be asked in a loop.
    """
    life = (not_after - issued_at).total_seconds()
    return issued_at + timedelta(seconds=max(life * (0.5 + JITTER * 0.5 * jitter), 0.25))


def due_in(entry: RegistrationEntry, svid: WorkloadSvid | None, now: datetime, mono: float) -> float:
    """Seconds until an entry's SVID is to be had anew, 0 or less when that is now: it is missing, half used (by either
    clock: the wall clock may have been set back), or out of date with its entry."""
    if svid is None or svid.asked != asked_for(entry):
        return 0.0
    return min((svid.rotate_at - now).total_seconds(), svid.rotate_by - mono)


def retry_seconds(failures: int, longest: float, jitter: float) -> float:
    """Exponential from half a second to `longest`, times 1 ± 0.2; `failures` ≥ 1, `jitter` in -1 to 1."""
    delay = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 10), longest)
    return delay * (1 + 0.2 * jitter)


def wanted(
    entries: Iterable[RegistrationEntry], in_use: set[str], limit: int, server: str
) -> tuple[list[RegistrationEntry], list[RegistrationEntry]]:
    """(entries somebody uses now, entries to fetch ahead so that at most `limit` SVIDs are held).

    Aliases of nodes (parent = the server) are no workload's, entries of a secret store neither.
    """
    urgent, ahead = [], []
    for entry in entries:
        if entry.id in in_use:
            urgent.append(entry)
        elif not (entry.disable_x509_svid_prefetch or entry.store_svid or str(entry.parent_id) == server):
            ahead.append(entry)
    return urgent, heapq.nsmallest(max(limit - len(urgent), 0), ahead, key=lambda entry: entry.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """The server's answer for one entry: a chain (DER, leaf first), or why not."""

    chain: tuple[bytes, ...] = ()
    error: BurgeeError | None = None


class Issuer(Protocol):
    """Asks the server for X.509-SVIDs; answers come in the order of the requests. Raises when nobody answers."""

    async def new_x509_svids(self, requests: Sequence[tuple[str, bytes]]) -> Sequence[Issued]: ...


class Rotator:
    """Keeps every wanted SVID fresh. `poke` after a change of entries or users; `run` for ever."""

    def __init__(
        self,
        *,
        cache: Cache,
        issuer: Issuer,
        keys: KeyPool,
        clock: Clock,
        executor: Executor | None = None,
        limit: int = 1000,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - spreads load, guards nothing
        condition: Condition | None = None,
    ) -> None:
        self._clocks = ClockWatch(clock, condition)
        self._taints = TaintWatch(cache, clock, jitter)
        self._cache = cache
        self._issuer = issuer
        self._keys = keys
        self._clock = clock
        self._executor = executor
        self._limit = limit
        self._jitter = jitter
        self._poked = asyncio.Event()
        self._failures: dict[str, tuple[int, float, str]] = {}
        self.problem: BurgeeError | None = None

    def poke(self) -> None:
        self._poked.set()

    def failure(self, entry_id: str) -> str | None:
        """The reason code of an entry's last failure, while it lasts."""
        known = self._failures.get(entry_id)
        return known[2] if known else None

    def retry_untrusted(self) -> None:
        """A bundle came: what was refused because its authority was unknown is asked for again at once."""
        self._failures = {key: value for key, value in self._failures.items() if value[2] != "SVID_UNTRUSTED"}
        self.poke()

    def forget(self, entry_ids: Iterable[str]) -> None:
        """Entries changed: what was refused before may be granted now."""
        for entry_id in entry_ids:
            self._failures.pop(entry_id, None)
        self.poke()

    async def run(self) -> None:
        """Ask for what is due, whenever it is."""
        while True:
            wait = await self.round()
            await sleep_or(self._clock, wait, self._poked)

    async def round(self) -> float:
        """Ask for everything that is due now, the SVIDs somebody waits for first; seconds until the next is due."""
        self._poked.clear()
        self._clocks.look()
        self._taints.look()
        urgent, ahead = wanted(
            self._cache.entries(), self._cache.in_use(), self._limit, str(server_id(self._cache.trust_domain))
        )
        self._drop_unused({entry.id for entry in urgent} | {entry.id for entry in ahead})
        due_urgent, due_ahead = self._due(urgent), self._due(ahead)
        batches = [*_batches(due_urgent), *_batches(due_ahead)]
        for batch in batches:
            await self._request(batch)
            if self._poked.is_set():
                return 0.0  # something changed meanwhile: look again, it may be more urgent than what is left
        return self._wait([*urgent, *ahead])

    def _due(self, entries: Iterable[RegistrationEntry]) -> list[RegistrationEntry]:
        now, mono = self._clock.now(), self._clock.monotonic()
        return [entry for entry in entries if self._due_in(entry, now, mono) <= 0.0]

    def _due_in(self, entry: RegistrationEntry, now: datetime, mono: float) -> float:
        """Seconds until an entry's SVID is to be asked for, also because of a taint, and not before the next retry."""
        svid = self._cache.svid(entry.id)
        due = due_in(entry, svid, now, mono)
        tainted = self._taints.wait(svid)
        retry = self._failures.get(entry.id, (0, 0.0, ""))[1] - mono
        return max(due if tainted is None else min(due, tainted), retry)

    def _wait(self, entries: Iterable[RegistrationEntry]) -> float:
        """Seconds until something is due, at most ten (a wall clock may be set, and then no sleep is right)."""
        now, mono = self._clock.now(), self._clock.monotonic()
        soonest = min((self._due_in(entry, now, mono) for entry in entries), default=10.0)
        return min(max(soonest, 0.01), 10.0)

    def _drop_unused(self, kept: set[str]) -> None:
        """What is too much, and what is tainted and will not be replaced: should somebody come for it, it is had
        anew."""
        held = {svid.entry_id for svid in self._cache.svids()}
        dropped = held - kept if len(held) > self._limit else set()
        dropped |= {svid.entry_id for svid in self._cache.svids() if self._taints.hits(svid)} - kept
        if dropped:
            self._cache.drop_svids(dropped)
        self._failures = {key: value for key, value in self._failures.items() if key in kept}

    async def _request(self, entries: Sequence[RegistrationEntry]) -> None:
        loop = asyncio.get_running_loop()
        try:
            keys = await self._keys.take(len(entries))
            requests = await loop.run_in_executor(self._executor, _requests, entries, keys)
            answers = await self._issuer.new_x509_svids(requests)
            if len(answers) != len(entries):
                raise Internal("the server answered another number of requests", reason="SVID_MALFORMED")
        except BurgeeError as error:
            self._note_problem(error)
            for entry in entries:
                self._failed(entry, error, UNREACHABLE_RETRY_SECONDS)
            return
        self.problem = None
        bundles = {bundle.trust_domain: bundle for bundle in self._cache.bundles()}
        now, mono, jitters = self._clock.now(), self._clock.monotonic(), [self._jitter() for _ in entries]
        results = await loop.run_in_executor(self._executor, _check_all, entries, keys, answers, bundles, now, jitters)
        results = [_kept_by(result, now, mono) for result in results]
        self._compare_clocks(results)
        self._take_over(entries, results)

    def _take_over(self, entries: Sequence[RegistrationEntry], results: Sequence[WorkloadSvid | BurgeeError]) -> None:
        svids = []
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, BurgeeError):
                self._failed(entry, result, REFUSED_RETRY_SECONDS)
                log.warning("no X.509-SVID", entry_id=entry.id, reason=result.reason, detail=result.detail)
            else:
                self._failures.pop(entry.id, None)
                svids.append(result)
                if self._taints.hits(result):
                    # The server has not moved to another authority yet: ask again, but not at once.
                    again = self._clock.monotonic() + TAINTED_RETRY_SECONDS
                    self._failures[entry.id] = (1, again, "AUTHORITY_TAINTED")
        self._cache.put_svids(svids)

    def _compare_clocks(self, results: Sequence[WorkloadSvid | BurgeeError]) -> None:
        taken = next((r for r in results if isinstance(r, WorkloadSvid)), None)
        ended = next((r for r in results if isinstance(r, BurgeeError) and r.reason == "CLOCK_AHEAD"), None)
        self._clocks.compare(parse_x509_svid(taken.chain).not_before if taken else None, ended)

    def _failed(self, entry: RegistrationEntry, error: BurgeeError, longest: float) -> None:
        count = self._failures.get(entry.id, (0, 0.0, ""))[0] + 1
        pause = at_least(retry_seconds(count, longest, self._jitter()), error, self._jitter())
        self._failures[entry.id] = (count, self._clock.monotonic() + pause, error.reason)

    def _note_problem(self, error: BurgeeError) -> None:
        if self.problem is None or self.problem.reason != error.reason:
            log.warning("cannot get X.509-SVIDs", reason=error.reason, detail=error.detail)
        self.problem = error


def check_issued(
    entry: RegistrationEntry,
    key: WorkloadKey,
    chain: Sequence[bytes],
    *,
    bundles: dict[TrustDomain, TrustBundle],
    now: datetime,
    jitter: float,
) -> WorkloadSvid:
    """Take over what the server sent only if it is for this entry and this key and chains to a root we hold already.

    The last keeps the order of a rotation: no workload presents a leaf before its root has been handed out.
    One that begins later by the clock here is taken all the same: the server's clock is what other nodes go by.
    Raises Unauthenticated (SVID_UNTRUSTED, SVID_WRONG_ID, SVID_WRONG_KEY, CLOCK_AHEAD). Blocks: about 0.3 ms.
    """
    try:
        svid = verify_x509_svid(chain, bundles, now=max(now, parse_x509_svid(chain).not_before))
    except BurgeeError as error:
        if error.reason == "SVID_EXPIRED":
            raise ahead(error.detail) from error
        raise Unauthenticated(error.detail, reason="SVID_UNTRUSTED") from error
    if svid.id != entry.spiffe_id:
        raise Unauthenticated(f"the server issued `{svid.id}` for `{entry.spiffe_id}`", reason="SVID_WRONG_ID")
    public = x509.load_der_x509_certificate(svid.chain[0]).public_key()
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if spki != key.public_der:
        raise Unauthenticated("the server certified another key", reason="SVID_WRONG_KEY")
    begins = max(now, svid.not_before)
    return WorkloadSvid(
        entry_id=entry.id,
        spiffe_id=svid.id,
        chain=tuple(svid.chain),
        key=key.pkcs8,
        issued_at=now,
        not_after=svid.not_after,
        # Of the life that the server meant, also where its clock is ahead of ours.
        rotate_at=rotate_at(begins, svid.not_after, jitter) - (begins - now),
        issuer_ids=issuer_ids(svid.authority_key_id, svid.chain[1:]),
        asked=asked_for(entry),
    )


def _kept_by(result: WorkloadSvid | BurgeeError, now: datetime, mono: float) -> WorkloadSvid | BurgeeError:
    """With its moment of rotation by the monotonic clock as well."""
    if isinstance(result, BurgeeError):
        return result
    return replace(result, rotate_by=mono + (result.rotate_at - now).total_seconds())


def _check_all(
    entries: Sequence[RegistrationEntry],
    keys: Sequence[WorkloadKey],
    answers: Sequence[Issued],
    bundles: dict[TrustDomain, TrustBundle],
    now: datetime,
    jitters: Sequence[float],
) -> list[WorkloadSvid | BurgeeError]:
    results: list[WorkloadSvid | BurgeeError] = []
    for entry, key, answer, jitter in zip(entries, keys, answers, jitters, strict=True):
        try:
            if answer.error is not None:
                raise answer.error
            results.append(check_issued(entry, key, answer.chain, bundles=bundles, now=now, jitter=jitter))
        except BurgeeError as error:
            results.append(error)
    return results


def _requests(entries: Sequence[RegistrationEntry], keys: Sequence[WorkloadKey]) -> list[tuple[str, bytes]]:
    return [(entry.id, certificate_request(key, entry.spiffe_id)) for entry, key in zip(entries, keys, strict=True)]


def _batches(entries: list[RegistrationEntry]) -> list[list[RegistrationEntry]]:
    return [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]
