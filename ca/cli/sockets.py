"""Which of our sockets it is that answers, for when it does not know what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

PROBE_SECONDS = 2.0


class Kind(StrEnum):
    """Whom a socket belongs to, in words; the value completes "that is …"."""

    SERVER = "the server's admin socket"
    AGENT = "the agent's admin socket"
    WORKLOAD = "the agent's Workload API"


_OPTIONS = {Kind.SERVER: "--socket", Kind.AGENT: "--agent-socket", Kind.WORKLOAD: "--endpoint"}
_CALLS = {
    Kind.SERVER: "/spire.api.server.debug.v1.Debug/GetInfo",
    Kind.AGENT: "/spire.agent.debug.v1.Debug/GetInfo",
    Kind.WORKLOAD: "/SpiffeWorkloadAPI/FetchX509Bundles",
}
"""Calls without effect that one of them alone has, SPIRE's as well as ours. The Workload API refuses it for want of its
header, but not as unknown."""


def advice(target: str, wanted: Kind) -> str:
    """What to do when `target`, as gRPC writes addresses, does not know a call that `wanted` should have."""
    found = set(_kinds(target))
    if wanted in found:
        return "what answers there has no such call: is it older than this program, or SPIRE's?"
    if found:
        return f"that is {found.pop()}; {_OPTIONS[wanted]} wants {wanted}"
    return f"what answers there is neither server nor agent; {_OPTIONS[wanted]} wants {wanted}"


def _kinds(target: str) -> Iterator[Kind]:
    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for kind, method in _CALLS.items():
            if _knows(channel, method):
                yield kind


def _knows(channel: grpc.Channel, method: str) -> bool:
    import grpc

    call: Any = channel.unary_unary(method)  # bytes in, bytes out: what is answered does not matter
    try:
        call(b"", timeout=PROBE_SECONDS)
    except grpc.RpcError as error:
        refused: Any = error  # the declared type hides that a call's error has code()
        nobody = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return refused.code() not in nobody
    return True
