"""An agent's acknowledgement as a value. What it names is bounded: an agent speaks for its node and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

from ca.identity.text import printable
from ca.proto.burgee import node_pb2 as pb
from ca.service.acks import Acknowledged, ProxyState

MAX_ERROR = 1024
MAX_AUTHORITIES = 256
MAX_NAME = 256
MAX_WAITING = 8
MAX_PROXIES = 1024
MAX_ID = 2048
STATES = frozenset({"sent", "acked", "nacked", "unanswered"})


def acknowledged(ack: pb.Ack, now: datetime) -> Acknowledged:
    """What the message says; too much of a kind is left out."""
    return Acknowledged(
        revision=ack.revision,
        error=ack.error[:MAX_ERROR],
        consumers=ack.consumers,
        consumers_acked=ack.consumers_acked,
        at=now,
        waiting=tuple(printable(name[:MAX_NAME]) for name in ack.waiting[:MAX_WAITING]),
        sequence=ack.bundle_sequence,
        authorities=frozenset(_ids(ack.authorities[:MAX_AUTHORITIES])),
        workload_streams=ack.workload_streams,
        svids={_one(item.authority_id): item.count for item in ack.svids[:MAX_AUTHORITIES]},
        proxies=tuple(map(_proxy, ack.proxies[:MAX_PROXIES])),
    )


def _proxy(found: pb.ProxyState) -> ProxyState:
    return ProxyState(
        proxy=printable(found.proxy[:MAX_NAME]),
        pid=found.pid,
        spiffe_id=printable(found.spiffe_id[:MAX_ID]),
        resource=printable(found.resource[:MAX_ID]),
        revision=found.revision,
        state=found.state if found.state in STATES else "",
        detail=printable(found.detail[:MAX_ERROR]),
        unlogged=found.unlogged,
        in_force=found.in_force,
    )


def _ids(names: Iterable[str]) -> Iterable[str]:
    return map(_one, names)


def _one(name: str) -> str:
    return _shared(name[:MAX_NAME])


@lru_cache(maxsize=1024)
def _shared(name: str) -> str:
    """A thousand agents name the same few authorities. Not interned: some releases of Python never forget what is, and
    an agent may name what it likes."""
    return name
