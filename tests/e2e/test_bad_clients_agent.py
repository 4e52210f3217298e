"""Clients of the workload socket that misbehave: the agent lives, stays small, and serves their neighbours."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from tests.e2e.test_bad_day_agent import fetch, http, log_of, metric, tells, watched
from tests.support.h2_abuse import ABUSES, PREFACE, frame
from tests.support.neighbours import Neighbour, other_user
from tests.support.pair import Pair, until

HOSTILE = 54321
NEIGHBOUR_SECONDS = 2.0
"""Longest wait of a decent client for its SVID meanwhile; a lone one waits some milliseconds."""

MORE_MEGABYTES = 100


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with watched() as made:
        made.create_entry("/w", x509_svid_ttl=600)
        made.create_entry("/hostile", f"unix:uid:{HOSTILE}", x509_svid_ttl=600)
        until("it serves", lambda: fetch(made))
        yield made


def rss_megabytes(nodes: Pair) -> float:
    text = Path(f"/proc/{nodes.pid('agent')}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


@pytest.mark.parametrize("kind", ABUSES)
def test_http2_abuse_harms_nobody_else(nodes: Pair, kind: str) -> None:
    """Four processes of another user at once, while a neighbour fetches its SVID again and again."""
    other_user()
    before, pid = rss_megabytes(nodes), nodes.pid("agent")
    with ExitStack() as stack:
        hostile = [Neighbour(kind, nodes.workload_socket, uid=HOSTILE) for _ in range(4)]
        for one in hostile:
            stack.callback(one.close)
        until("they have begun", lambda: all(one.lines for one in hostile), seconds=60)
        waits, peak, deadline = [], before, time.monotonic() + 1.5
        while time.monotonic() < deadline:
            began = time.monotonic()
            fetch(nodes)
            waits.append(time.monotonic() - began)
            peak = max(peak, rss_megabytes(nodes))
    print(f"{kind}: {len(waits)} fetches meanwhile, the slowest {max(waits):.2f} s; {before:.0f} → {peak:.0f} MB")
    assert max(waits) < NEIGHBOUR_SECONDS
    assert peak - before < MORE_MEGABYTES
    assert nodes.pid("agent") == pid
    tells(nodes, "OK")
    until("nothing is left of it", lambda: metric(nodes, 'burgee_gate_connections{listener="workload"}') <= 1)
    assert "Traceback" not in log_of(nodes, "agent")


@pytest.mark.slow
def test_silent_and_slow_clients_are_sent_away(nodes: Pair) -> None:
    """Ten seconds for the first bytes, however slowly they drip; whoever has spoken may be silent for long."""
    silent, dripping, idle = (socket.socket(socket.AF_UNIX) for _ in range(3))
    try:
        for sock in (silent, dripping, idle):
            sock.connect(str(nodes.workload_socket))
        idle.send(PREFACE + frame(4, 0, 0))
        began = time.monotonic()
        drip = iter(PREFACE)

        def sent_away(sock: socket.socket) -> bool:
            try:
                return not sock.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        def both() -> bool:
            if (byte := next(drip, None)) is not None and not sent_away(dripping):
                dripping.send(bytes([byte]), socket.MSG_NOSIGNAL)
            return sent_away(silent) and sent_away(dripping)

        until("both are sent away", both, seconds=15, every=0.6)
        assert 9 < time.monotonic() - began < 13
        assert metric(nodes, 'burgee_gate_refused_total{listener="workload",reason="FIRST_BYTES_TIMEOUT"}') >= 2
        assert not sent_away(idle)
        assert http(nodes, "/ready").status_code == 200
    finally:
        for sock in (silent, dripping, idle):
            sock.close()


def test_a_request_larger_than_any_is_refused_unread(nodes: Pair) -> None:
    """And the connection's others are served on."""
    with grpc.insecure_channel(
        f"unix:{nodes.workload_socket}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        call = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID")
        with pytest.raises(grpc.RpcError) as refused:
            call(bytes(1 << 20), metadata=(("workload.spiffe.io", "true"),), timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as again:
            call(b"", metadata=(("workload.spiffe.io", "true"),), timeout=10)
        assert again.value.code() is grpc.StatusCode.INVALID_ARGUMENT
