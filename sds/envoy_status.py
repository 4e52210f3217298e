"""Which Envoys are connected and how far each of their secrets got, for the operator and for the server."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ca.runtime.metrics import counter, gauge
from sds.envoy_subscriber import ResourceState, Subscriber
from sds.feed import BUNDLE, Consumers
from sds.secrets import Secrets, is_root_name
from sds.views import Content

NAMED = 8
"""Of clients that are behind so many are named."""
MAX_NODE = 64

STREAMS = gauge("agent_sds_streams", "Open Envoy SDS streams")
NACKS = counter("agent_sds_nacks", "Resources that an Envoy rejected")
REJECTED = gauge("agent_sds_rejected", "Secrets and policies that an Envoy rejects now: it goes by those before")


@dataclass(frozen=True, slots=True, kw_only=True)
class SdsClient:
    """One open stream: who it is by the kernel's word, and its state."""

    number: int
    pid: int
    uid: int
    connected_at: datetime
    stream: Subscriber


class SdsClients:
    """The open streams. `on_answer` is called when it may have changed how many there are or how far they got."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._clients: dict[int, SdsClient] = {}
        self.on_answer: list[Callable[[], None]] = []
        REJECTED.set_function(self._rejected)

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
        self.moved()

    def all(self) -> list[SdsClient]:
        """By the order in which they came."""
        return list(self._clients.values())

    def consumers(self, kind: str, *, current: Callable[[Content], bool] = lambda _: True) -> Consumers:
        """Streams that were sent resources of a kind (`bundle` or `entry`), and those that accepted all of them.

        `current` tells whether a stream was looked at since what it is about last changed: before that it may have
        accepted only what was there before.
        """
        total, behind = 0, list[SdsClient]()
        for client in self._clients.values():
            seen = client.stream.seen
            states = _states(client.stream, roots=kind == BUNDLE)
            if states and isinstance(seen, Secrets):
                total += 1
                if not current(seen.content) or any(state is not ResourceState.ACKED for state in states):
                    behind.append(client)
        return Consumers(total, total - len(behind), tuple(map(_name, behind[:NAMED])))

    def _rejected(self) -> int:
        """Now; asked from another thread."""
        statuses = (status for client in self.all() for status in list(client.stream.statuses.values()))
        return sum(status.state is ResourceState.NACKED for status in statuses)

    def answered(self, *, rejected: int = 0) -> None:
        """A client accepted or rejected something."""
        if rejected:
            NACKS.inc(rejected)
        self.moved()

    def moved(self) -> None:
        """A client came so far, was sent something, or went."""
        for callback in self.on_answer:
            callback()


def _states(stream: Subscriber, *, roots: bool) -> list[ResourceState]:
    return [
        status.state
        for status in stream.statuses.values()
        if status.state is not ResourceState.UNKNOWN and is_root_name(status.name, stream.names) == roots
    ]


def _name(client: SdsClient) -> str:
    node = f" ({client.stream.node_id[:MAX_NODE]})" if client.stream.node_id else ""
    return f"pid {client.pid}{node}"
