"""What one caller may ask for in a second, and when the server has time for it. The Unix socket is exempt."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext

from ca.api.access import Caller, current_caller
from ca.errors import Exhausted
from ca.ports import Challenge, Clock
from ca.runtime import metrics
from ca.runtime.elsewhere import placed
from ca.runtime.gate_places import origin_of_address
from ca.runtime.server_config import LimitsConfig
from ca.service.admission import Admission, Turn
from ca.service.rates import TokenBuckets

CSRS_PER_UNIT = 25
"""A call counts one for its admission, and one more for so many CSRs."""

RENEWALS_PER_SECOND = 2.0
"""Of one agent's own SVID, of which each stays alive, and on record, until its end; an agent renews it once in half of
its life. They count among its X.509-SVIDs, too."""

ACKS_PER_SECOND, ACKS_AT_ONCE = 100.0, 500.0
"""Requests on the push streams of one agent; Burgee's agents send 40 a second when all changes all the time."""

RENEWAL, ATTESTATION = 0.0, 1.0
"""Who has an identity to lose goes before who has none yet."""

BEGINNING_OR_ENDING = 2
"""So many times an agent's push streams may be open: those that have not subscribed yet, and those that a newer one has
ended, are none of its sessions."""

RATE_REFUSED = metrics.counter("rate_refused", "Calls beyond what one caller may ask for, by kind.", ["kind"])


class Limits:
    """One for all services of a server; each of its methods judges the call that runs now. All raise Exhausted."""

    def __init__(
        self,
        config: LimitsConfig,
        clock: Clock,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives 0 to 1."""
        self._clock = clock
        self._jitter = jitter
        self._streams: Counter[Hashable] = Counter()
        self._streams_per_agent = BEGINNING_OR_ENDING * config.streams_per_agent
        self._streams_per_address = config.streams_per_address
        self._admission = Admission(
            max_running=config.admission_running,
            max_waiting=config.admission_waiting,
            monotonic=clock.monotonic,
            jitter=jitter,
        )
        rates = {
            "attestation": config.attestations_per_second_per_address,
            "exchange": config.exchanges_per_second_per_address,
            "renewal": RENEWALS_PER_SECOND,
            "signature_of_address": config.signatures_per_second_per_address,
            "x509_svid": config.x509_svids_per_second_per_agent,
            "jwt_svid": config.jwt_svids_per_second_per_agent,
            "status": config.status_posts_per_second_per_agent,
        }
        self._rates = {
            kind: TokenBuckets(per_second=rate, burst_seconds=config.burst_seconds) for kind, rate in rates.items()
        }
        self._rates["ack"] = TokenBuckets(per_second=ACKS_PER_SECOND, burst_seconds=ACKS_AT_ONCE / ACKS_PER_SECOND)

    @asynccontextmanager
    async def attestation(self, challenge: Challenge) -> AsyncIterator[Challenge]:
        """Around one attestation. The challenge that it gives waits for the agent outside of the turn."""
        caller = current_caller()
        if _local(caller):
            yield challenge
            return
        self._take("attestation", address_of(caller), 1)
        async with self._admission.turn((ATTESTATION,)) as turn:
            with placed(turn.paused):
                yield _patient(turn, challenge)

    @asynccontextmanager
    async def exchange(self) -> AsyncIterator[None]:
        """Around the exchange of one token; whoever has an agent goes before."""
        caller = current_caller()
        if _local(caller):
            yield
            return
        self._take("exchange", address_of(caller), 1)
        async with self._admission.turn((ATTESTATION,)) as turn:
            with placed(turn.paused):
                yield

    def signature(self, share: Hashable) -> AbstractAsyncContextManager[object]:
        """Around one signature for somebody whom another service let in, `share` being who; after those with agents."""
        return self._admission.turn((ATTESTATION,), share=share)

    def x509(self, count: int) -> AbstractAsyncContextManager[object]:
        """Around the issuing of `count` X.509-SVIDs."""
        return self._signing("x509_svid", count, 1 + count // CSRS_PER_UNIT)

    def renewal(self) -> AbstractAsyncContextManager[object]:
        """Around the renewal of an agent's own SVID."""
        self._take("renewal", _identity(current_caller()), 1)
        return self.x509(1)

    def jwt(self) -> AbstractAsyncContextManager[object]:
        """Around the issuing of one JWT-SVID."""
        return self._signing("jwt_svid", 1, 1)

    def status(self) -> None:
        """Before an agent's status is taken."""
        caller = current_caller()
        if not _local(caller):
            self._take("status", _identity(caller), 1)

    def ack(self) -> None:
        """Before one request of a push stream is looked at."""
        caller = current_caller()
        if not _local(caller):
            self._take("ack", _identity(caller), 1)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """While a stream is open."""
        caller = current_caller()
        if _local(caller):
            yield
            return
        places = ((_identity(caller), self._streams_per_agent), (address_of(caller), self._streams_per_address))
        for place, allowed in places:
            if self._streams[place] >= allowed:
                raise self._refusal("stream", 1.0, f"more than {allowed} streams are open from there")
        self._streams.update(place for place, _ in places)
        try:
            yield
        finally:
            for place, _ in places:
                self._streams[place] -= 1
                if not self._streams[place]:
                    del self._streams[place]

    def _signing(self, kind: str, count: int, units: int) -> AbstractAsyncContextManager[object]:
        """The caller whose own SVID ends first goes first."""
        caller = current_caller()
        if _local(caller):
            return nullcontext()
        identity = _identity(caller)
        self._take(kind, identity, count)
        self._take("signature_of_address", address_of(caller), count)
        svid = caller.peer.svid
        ends = svid.not_after.timestamp() if svid is not None else 0.0
        return self._admission.turn((RENEWAL, ends), units=units, share=identity)

    def _take(self, kind: str, caller: Hashable, amount: int) -> None:
        buckets = self._rates[kind]
        seconds = buckets.take(caller, amount, self._clock.monotonic())
        if seconds:
            raise self._refusal(kind, seconds, f"more than {buckets.per_second:g} a second of one caller")

    def _refusal(self, kind: str, seconds: float, detail: str) -> Exhausted:
        RATE_REFUSED.labels(kind).inc()
        return Exhausted(
            detail,
            reason="RATE_LIMITED",
            hint="come again after the time given; `limits` of the server's configuration says how much is allowed",
            retry_after_seconds=seconds * (1 + 0.5 * self._jitter()) + 0.1 * self._jitter(),
        )


def _patient(turn: Turn, challenge: Challenge) -> Challenge:
    async def wait(data: bytes) -> bytes:
        async with turn.paused():
            return await challenge(data)

    return wait


def _local(caller: Caller) -> bool:
    return caller.peer.transport == "unix"


def address_of(caller: Caller) -> Hashable:
    """`[::1]:1234` or `127.0.0.1:1234` → what the gate counts as one network address."""
    return origin_of_address(caller.peer.remote_address.rpartition(":")[0].strip("[]"))


def _identity(caller: Caller) -> Hashable:
    """The SPIFFE ID where there is one, else the address."""
    svid = caller.peer.svid
    return address_of(caller) if svid is None else svid.id
