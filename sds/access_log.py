"""Envoy's access-log service, v3, on the workload socket: what proxies decided by pushed policies reaches the log.

A stream belongs to its attested caller: its decisions are on requests to that workload, whatever it writes. What comes
faster than all streams of a workload may bring is lost, and counted like all loss: nobody writes the others' out of the
log by opening many.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from ca.errors import InvalidArgument
from ca.ports import Clock
from ca.runtime.decision_log import DecisionLog
from ca.runtime.log import get
from ca.runtime.metrics import counter, gauge
from sds.askers import target_of
from sds.cache import Cache, Subscription
from sds.policy_held import HeldPolicies
from sds.workloads import Caller, Context, Workloads, quiet_exit

if TYPE_CHECKING:
    from policy.access_log import Proxy
    from policy.decision_record import DecisionRecord

SERVICE = "envoy.service.accesslog.v3.AccessLogService"
MAX_PER_SECOND = 10_000
"""Entries of one workload's streams; in one burst no more either."""
MAX_SHARES = 1024
MAX_NODE = 256

STREAMS = gauge("agent_access_log_streams", "Open streams of Envoy's access log")
ENTRIES = counter("agent_access_log_entries", "Entries of Envoy's access logs, by what came of them", ["what"])

log = get("sds.access_log")


class AccessLogs:
    """The service. `revision_of` is what the proxy of a process goes by, None where that is not known. `on_change` is
    called when an answer of `logged` changed."""

    def __init__(
        self,
        *,
        peer_of: Callable[[Context], Caller],
        workloads: Workloads,
        cache: Cache,
        held: HeldPolicies,
        clock: Clock,
        log: DecisionLog,
        revision_of: Callable[[int], int | None] = lambda pid: None,
        on_change: Callable[[], None] = lambda: None,
        max_per_second: int = MAX_PER_SECOND,
    ) -> None:
        self._peer_of, self._workloads, self._cache = peer_of, workloads, cache
        self._held, self._clock, self._log = held, clock, log
        self._revision_of, self._max_per_second = revision_of, max_per_second
        self._on_change = on_change
        self._open: Counter[int] = Counter()
        self._paces: OrderedDict[str, _Pace] = OrderedDict()

    def logged(self, pid: int) -> bool:
        """Whether the proxy of a process sends its log here now. Envoy begins with its first request."""
        return self._open[pid] > 0

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._stream)}
        )

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        caller = self._peer_of(context)
        session = self._workloads.session(caller, needs_svid=False, patient=True)
        async with session as subscription, quiet_exit(context):
            await self._read(requests, context, caller.pid or 0, subscription)
        return b""

    async def _read(
        self, requests: AsyncIterator[bytes], context: Context, pid: int, subscription: Subscription
    ) -> None:
        from policy.ext_authz_wire import said_by

        try:
            wanted = said_by(context.invocation_metadata() or ())[1]
        except ValueError as error:
            raise InvalidArgument(f"no access log: {error}", reason="LOG_MALFORMED") from None
        pace = self._pace_of(subscription.share)
        stream = _Stream(self._cache, subscription, wanted, self._clock, pace)
        named = False
        try:
            async for raw in requests:
                subscription.check()
                message = stream.parsed(raw)
                if not named:
                    named = True
                    self._opened(pid, 1)
                revision = self._revision_of(pid)
                for record in stream.records(message, self._held.revision if revision is None else revision):
                    self._log.add(record)
                if stream.lost:
                    self._log.lose(stream.lost)
                    ENTRIES.labels("lost").inc(stream.lost)
                    stream.lost = 0
        except grpc.aio.BaseError as error:
            log.debug("an access log broke off", error=str(error))
        finally:
            if named:
                self._opened(pid, -1)

    def _pace_of(self, share: str) -> _Pace:
        """It outlives the streams: who comes again has no new burst."""
        pace = self._paces.pop(share, None) or _Pace(self._clock, self._max_per_second)
        self._paces[share] = pace
        if len(self._paces) > MAX_SHARES:
            self._paces.popitem(last=False)
        return pace

    def _opened(self, pid: int, change: int) -> None:
        STREAMS.inc(change)
        self._open[pid] += change
        if not self._open[pid]:
            del self._open[pid]
        self._on_change()


class _Pace:
    """How much the streams of one workload may say together."""

    def __init__(self, clock: Clock, max_per_second: int) -> None:
        self._clock = clock
        self._max = self._room = float(max_per_second)
        self._filled_at = clock.monotonic()

    def may(self) -> bool:
        """Whether one more entry may come now."""
        now = self._clock.monotonic()
        self._room = min(self._max, self._room + (now - self._filled_at) * self._max)
        self._filled_at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True


class _Stream:
    """What one stream says of itself."""

    def __init__(self, cache: Cache, subscription: Subscription, wanted: str, clock: Clock, pace: _Pace) -> None:
        self.lost = 0
        self._cache, self._subscription, self._wanted, self._clock = cache, subscription, wanted, clock
        self._prefix: str | None = None
        self._node = ""
        self._pace = pace

    def parsed(self, raw: bytes) -> Any:
        """Raises InvalidArgument for what is no message, or a log that the snippet does not name."""
        from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
        from google.protobuf.message import DecodeError

        from policy.access_log import LOG_NAME

        try:
            message = StreamAccessLogsMessage.FromString(raw)
        except DecodeError:
            raise InvalidArgument("no access log: not a message", reason="LOG_MALFORMED") from None
        if self._prefix is None:
            found = LOG_NAME.fullmatch(message.identifier.log_name)
            if found is None:
                raise InvalidArgument(
                    "no access log of ours: its name has no prefix",
                    reason="LOG_NAME",
                    hint="`caadmin policy envoy-snippet` writes `burgee/<prefix>`",
                )
            self._prefix, self._node = found[1], message.identifier.node.id[:MAX_NODE]
        return message

    def records(self, message: Any, revision: int) -> Iterator[DecisionRecord]:
        """The decisions of a message, as many as may come now."""
        from policy.access_log import http_record, tcp_record

        proxy = self._proxy(revision)
        now = self._clock.now()
        for entries, read in ((message.http_logs.log_entry, http_record), (message.tcp_logs.log_entry, tcp_record)):
            for entry in entries:
                if not self._pace.may():
                    self.lost += 1
                    continue
                record = read(entry, proxy, now=now)
                ENTRIES.labels("none" if record is None else "decision").inc()
                if record is not None:
                    yield record

    def _proxy(self, revision: int) -> Proxy:
        from policy.access_log import Proxy

        content = self._cache.content(self._subscription.view)
        ids = tuple(sorted({str(entry.spiffe_id) for entry in content.entries}))
        target = target_of(ids, self._wanted)
        return Proxy(target=target, prefix=self._prefix or "", node=self._node, revision=revision or None)
