"""One workload does its worst; the SVIDs of its neighbours are renewed in time all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.support.neighbours import Neighbour, cgroups, other_user
from tests.support.pair import Pair, free_port, pair, until

HOSTILE, PEACEFUL = 54321, 54322
SVID_SECONDS = 6
DUE_SECONDS = 3.3
"""Half of the life, and ten per cent."""

DEADLINE_SECONDS = 0.5
"""How late a renewal may come; five times that fails the test, which shares its machine with others."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    other_user()
    with pair(agent={"metrics_address": f"127.0.0.1:{free_port()}"}) as made:
        made.create_entry("/hostile", f"unix:uid:{HOSTILE}", x509_svid_ttl=3600)
        made.create_entry("/peaceful", f"unix:uid:{PEACEFUL}", x509_svid_ttl=SVID_SECONDS)
        made.create_entry("/root", f"unix:uid:{os.getuid()}", x509_svid_ttl=SVID_SECONDS)
        until("their SVIDs are here", lambda: made.status().x509_svids >= 3)
        yield made


def metric(nodes: Pair, start: str) -> float:
    text = httpx.get(f"http://{nodes.agent_options['metrics_address']}/metrics", timeout=10).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start))


def lateness(neighbour: Neighbour) -> float:
    """Of the latest renewal."""
    at = [line["at"] for line in neighbour.lines]
    return max(second - first for first, second in pairwise(at)) - DUE_SECONDS


def peak_rss(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.parametrize("apart", ["uid", "cgroup"])
def test_a_hostile_workload_delays_nobody(nodes: Pair, apart: str, capsys: pytest.CaptureFixture[str]) -> None:
    """5,000 connections, audiences without end, 3,000 unread streams: the neighbour's 6 s SVIDs come in time."""
    with ExitStack() as stack:
        if apart == "uid":
            here: dict[str, list] = {"hostile": [HOSTILE, None], "neighbour": [PEACEFUL, None]}
        else:  # two containers, both root
            bad, good = stack.enter_context(cgroups("hostile", "peaceful"))
            here = {"hostile": [None, bad], "neighbour": [None, good]}
        socket = nodes.workload_socket
        who = {}
        for role, (uid, cgroup) in here.items():
            who[role] = Neighbour(role, socket, uid=uid, cgroup=cgroup)
            stack.callback(who[role].close)
        until("the hostile one has its share", lambda: who["hostile"].lines[-1]["opened"] > 1500, seconds=40)
        until("the neighbour is served", lambda: who["neighbour"].lines, seconds=20)
        del who["neighbour"].lines[:-1]
        until("two renewals", lambda: len(who["neighbour"].lines) >= 3, seconds=60)
        late = lateness(who["neighbour"])
        held = metric(nodes, 'burgee_gate_connections{listener="workload"}')
        refused = metric(nodes, 'burgee_gate_refused_total{listener="workload",reason="CONNECTION_LIMIT_OF_CALLER"}')
        with capsys.disabled():
            print(
                f"\n{apart}: renewals at most {late:.2f} s late (deadline {DEADLINE_SECONDS} s), {held:.0f} open, "
                f"refused {refused:.0f}, agent's peak {peak_rss(nodes.pid('agent')) // 1024} MB"
            )
        assert late < 5 * DEADLINE_SECONDS
        assert 1000 < held < 1520
        assert refused > 0
        assert nodes.status().state == "OK"
        assert httpx.get(f"http://{nodes.agent_options['metrics_address']}/ready", timeout=10).status_code == 200
        assert metric(nodes, "burgee_agent_jwt_svids") <= 2 * 512  # one share for each hostile workload so far
    until("its places are free again", lambda: metric(nodes, 'burgee_gate_connections{listener="workload"}') < 10)
