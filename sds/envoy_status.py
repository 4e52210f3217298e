"""Which Envoys are connected and how far each of their secrets got, for the operator and for the server."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ca.runtime.metrics import counter, gauge
from sds.envoy_subscriber import ResourceState, Subscriber
from sds.feed import BUNDLE, Consumers
from sds.secrets import is_root_name

STREAMS = gauge("agent_sds_streams", "Open Envoy SDS streams")
NACKS = counter("agent_sds_nacks", "Secrets that an Envoy rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class SdsClient:
    """One open stream: who it is by the kernel's word, and its state."""

    number: int
    pid: int
    uid: int
    connected_at: datetime
    stream: Subscriber


class SdsClients:
    """The open streams. `on_answer` is called with the kind of resource after a client took over or rejected one."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._clients: dict[int, SdsClient] = {}
        self.on_answer: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, stream: Subscriber, *, pid: int, uid: int, now: datetime) -> SdsClient:
        """A stream has opened."""
        client = SdsClient(number=next(self._numbers), pid=pid, uid=uid, connected_at=now, stream=stream)
        self._clients[client.number] = client
        STREAMS.set(len(self._clients))
        return client

    def remove(self, client: SdsClient) -> None:
        """A stream has ended."""
        self._clients.pop(client.number, None)
        STREAMS.set(len(self._clients))

    def all(self) -> list[SdsClient]:
        """By the order in which they came."""
        return list(self._clients.values())

    def consumers(self, kind: str) -> Consumers:
        """Streams that were sent resources of a kind (`bundle` or `entry`), and those that accepted all of them."""
        total = acked = 0
        for client in self._clients.values():
            roots = kind == BUNDLE
            states = [
                status.state
                for status in client.stream.statuses.values()
                if status.state is not ResourceState.UNKNOWN and is_root_name(status.name, client.stream.names) == roots
            ]
            if states:
                total += 1
                acked += all(state is ResourceState.ACKED for state in states)
        return Consumers(total, acked)

    def answered(self, *, rejected: int = 0) -> None:
        """A client accepted or rejected something."""
        if rejected:
            NACKS.inc(rejected)
        for callback in self.on_answer:
            callback()
