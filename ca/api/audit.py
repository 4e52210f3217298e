"""Records administrative calls: begun before they run, finished before they are answered, refused if they cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from ca.api.access import Access, Caller, current_caller
from ca.api.audit_items import TokenId, answered, asked
from ca.api.tiers import MANAGERS, TIERS, Tier
from ca.errors import BurgeeError, Code, Denied, Unavailable
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.proto.burgee import authority_pb2
from ca.runtime import log, metrics
from ca.runtime.gate import Peer
from ca.runtime.rpc_handlers import Answer, Context, Yielding
from ca.service.peers import AgentAuthorizer
from ca.store.audit import AuditItem, AuditLog, AuditRecord
from ca.store.authorized import AuthorizedIndex

T = TypeVar("T")
logger = log.get("audit")

READS = ("Get", "List", "Count", "Explain", "Watch")
_NEVER = ("/grpc.health.v1.", "/grpc.reflection.")

DENIALS_BURST = 50
DENIALS_PER_SECOND = 5.0
"""Denied calls that are recorded: whoever may not call must not be able to fill the store either."""

_dropped = metrics.counter("audit_denials_dropped", "Denied administrative calls that came too fast to be recorded.")


def administrative(method: str) -> bool:
    """Only administrators call it, or servers below this one, who add to the authorities (`TIERS`)."""
    allowed = TIERS.get(method, Tier(0))
    called = allowed & (MANAGERS | Tier.DOWNSTREAM) and not allowed & (Tier.ANYONE | Tier.AGENT)
    return bool(called) and not method.startswith(_NEVER)


def reads(method: str) -> bool:
    """It changes nothing and issues nothing."""
    return method.startswith("GET ") or method.rpartition("/")[2].startswith(READS)


def looks(request: object) -> bool:
    """A rotation that only waits looks every second for hours: that would bury what was done."""
    return isinstance(request, authority_pb2.RotateRequest) and request.dry_run


@dataclass(frozen=True, slots=True)
class Actor:
    """Who, and from where."""

    name: str
    origin: str

    @classmethod
    def of(cls, peer: Peer) -> Actor:
        if peer.transport == "unix":
            return cls(f"uid:{peer.uid}", f"pid:{peer.pid}")
        return cls(str(peer.svid.id) if peer.svid is not None else "anonymous", peer.remote_address)


class Auditor:
    """Writes records. `reads` may be changed at any time."""

    def __init__(self, *, records: AuditLog, server: str, clock: Clock, token_id: TokenId, reads: bool = False) -> None:
        self.token_id = token_id
        self._records = records
        self._server = server
        self._clock = clock
        self.reads = reads
        self._denials = float(DENIALS_BURST)
        self._denials_at = clock.monotonic()

    def wants(self, method: str, request: object = None) -> bool:
        return administrative(method) and (self.reads or not (reads(method) or looks(request)))

    async def begin(self, method: str, caller: Caller, items: list[AuditItem]) -> int:
        """Raises Unavailable (AUDIT_UNAVAILABLE): a call that cannot be recorded does not run."""
        try:
            return await self._records.append(self._record(method, caller.peer, tuple(items)))
        except Unavailable as error:
            raise _unrecorded("the call was not made: it cannot be recorded in the audit log now") from error

    async def finish(self, number: int, code: str, reason: str, items: list[AuditItem]) -> None:
        """Raises Unavailable (AUDIT_UNAVAILABLE)."""
        try:
            await self._records.finish(number, code=code, reason=reason, items=items)
        except Unavailable as error:
            logger.error("result of a call could not be recorded", reason="AUDIT_UNAVAILABLE", record=number, code=code)
            raise _unrecorded("the call was made, but its result cannot be recorded in the audit log now") from error

    async def recorded(
        self, method: str, peer: Peer, actor: str, item: AuditItem, work: Callable[[], Awaitable[T]]
    ) -> T:
        """`work`, done for somebody who is no administrator, on record before and after. Raises what it raises, and
        Unavailable (AUDIT_UNAVAILABLE)."""
        try:
            number = await self._records.append(self._record(method, peer, (item,), actor=actor))
        except Unavailable as error:
            raise _unrecorded("nothing was issued: it cannot be recorded in the audit log now") from error
        try:
            done = await work()
        except BaseException as error:
            await self.failed(number, error, [item])
            raise
        await self.finish(number, "OK", "", [AuditItem(item.name, item.about, "OK")])
        return done

    async def failed(self, number: int, error: BaseException, items: list[AuditItem]) -> None:
        """The caller hears of the call's own failure; that its record lacks the result is in the log."""
        if isinstance(error, BurgeeError):
            code, reason = error.code.value, error.reason
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            code, reason = "Cancelled", "CALLER_GONE"
        else:
            code, reason = Code.INTERNAL.value, "INTERNAL"
        try:
            await self.finish(number, code, reason, items)
        except Unavailable:
            pass  # logged where it happened

    async def denied(self, method: str, peer: Peer, error: Denied) -> None:
        """Record a call that was not let in. It is refused either way, so a store that is away loses no more than
        the record, and says so in the log."""
        if not administrative(method):
            return
        if not self._may_record_denial():
            _dropped.inc()
            return
        record = self._record(method, peer, (), code=error.code.value, reason=error.reason)
        try:
            await self._records.append(record)
        except Unavailable:
            logger.error("denied call could not be recorded", reason="AUDIT_UNAVAILABLE", method=method)

    def _record(
        self,
        method: str,
        peer: Peer,
        items: tuple[AuditItem, ...],
        *,
        code: str = "",
        reason: str = "",
        actor: str = "",
    ) -> AuditRecord:
        caller = Actor.of(peer)
        return AuditRecord(
            at=self._clock.now(),
            server=self._server,
            actor=actor or caller.name,
            origin=caller.origin,
            call=method,
            request_id=log.request_id.get(),
            code=code,
            reason=reason,
            items=items,
        )

    def _may_record_denial(self) -> bool:
        now = self._clock.monotonic()
        grown = self._denials + (now - self._denials_at) * DENIALS_PER_SECOND
        self._denials, self._denials_at = min(float(DENIALS_BURST), grown), now
        if self._denials < 1:
            return False
        self._denials -= 1
        return True


class AuditedAccess(Access):
    """Access that records whom it denies."""

    def __init__(
        self,
        *,
        agents: AgentAuthorizer,
        index: AuthorizedIndex,
        clock: Clock,
        admin_ids: frozenset[SpiffeId],
        auditor: Auditor,
    ) -> None:
        super().__init__(agents=agents, index=index, clock=clock, admin_ids=admin_ids)
        self._auditor = auditor

    async def admit(self, method: str, peer: Peer) -> Caller:
        try:
            return await super().admit(method, peer)
        except Denied as error:
            await self._auditor.denied(method, peer, error)
            raise


class Audited:
    """Implements ca.runtime.rpc_handlers.Layer. To stand inside of Admitted and PARSED: it sees callers that were
    admitted, and messages."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    def answer(self, method: str, inner: Answer, *, streaming: bool) -> Answer:
        if not administrative(method) or streaming:
            return inner

        async def recorded(request: Any, context: Context) -> Any:
            if not self._auditor.wants(method, request):
                return await inner(request, context)
            items = asked(request, self._auditor.token_id)
            number = await self._auditor.begin(method, current_caller(), items)
            try:
                response = await inner(request, context)
            except BaseException as error:
                await self._auditor.failed(number, error, items)
                raise
            await self._auditor.finish(number, "OK", "", answered(request, response, self._auditor.token_id))
            return response

        return recorded

    def yielding(self, method: str, inner: Yielding) -> Yielding:
        if not administrative(method):
            return inner

        async def recorded(request: Any, context: Context) -> AsyncIterator[Any]:
            wanted = self._auditor.wants(method)
            number = (
                await self._auditor.begin(method, current_caller(), asked(request, self._auditor.token_id))
                if wanted
                else 0
            )
            responses: Any = inner(request, context)
            try:
                async with aclosing(responses):
                    async for response in responses:
                        yield response
            except BaseException as error:
                if wanted:
                    await self._auditor.failed(number, error, [])
                raise
            if wanted:
                await self._auditor.finish(number, "OK", "", [])

        return recorded


def _unrecorded(detail: str) -> Unavailable:
    return Unavailable(detail, reason="AUDIT_UNAVAILABLE", hint="the server's log says why; try again later")
