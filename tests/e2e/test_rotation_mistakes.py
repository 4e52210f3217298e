"""Rotations of a real server by hand that go wrong: steps in a wrong order, several operators at once, an agent that is
gone for ever, agents that are behind when the last safe second comes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca.errors import BurgeeError
from ca.identity.bundle import authority_id
from tests.support.lone_server import LoneServer, lone_server, workloads
from tests.support.operators import Operator, refused, when_allowed
from tests.support.pair import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

CA_SECONDS = 60
SVID_SECONDS = 10
SHORT_SECONDS = 4
"""SVIDs that leave some time between the moment when the next authority is due and the last safe one."""
MARGIN_SECONDS = CA_SECONDS / 24
QUARREL_SECONDS = 5.0
WAYS = {
    "activate": "nothing is left to do",
    "taint": "`caadmin ca rotate x509 --taint`",
    "revoke": "`caadmin ca rotate x509 --taint`",
    "prune": "`caadmin ca rotate x509`",
}
"""What to do instead, with the authority that signs."""
EACH = frozenset(("prepare", "activate", "taint"))
NOISE_SECONDS = 10.0


@pytest.fixture
def server() -> Iterator[LoneServer]:
    with lone_server(ca_seconds=10 * CA_SECONDS, svid_seconds=SVID_SECONDS) as made:
        yield made


def caadmin(server: LoneServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What somebody at a terminal sees, on one line."""
    command = [sys.executable, "-m", "ca.cli.caadmin", "ca", *arguments, "--socket", str(server.admin_socket)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    done.stderr = " ".join(done.stderr.split())
    return done


def roots(server: LoneServer) -> set[str]:
    return {authority_id(der) for der in server.roots()}


def refusal(step: Callable[[], object]) -> BurgeeError:
    with pytest.raises(grpc.RpcError) as caught:
        step()
    return refused(caught.value)


def test_a_wrong_order_is_refused_with_what_to_do(server: LoneServer) -> None:
    """At the terminal, where nothing else is at hand than what is printed."""
    operator = server.operator
    active = operator.state().active.authority_id
    expected = {
        "activate": "is active since .*: only a prepared one can be activated",
        "taint": "is active since .*: only an old one can be tainted",
        "revoke": "is active since .*: only an old one can be revoked",
        "prune": "is active since .*: only an old one can be pruned",
    }
    for step, words in expected.items():
        done = caadmin(server, step, "x509", active)
        assert done.returncode != 0
        assert _says(done.stderr, words), done.stderr
        assert "caadmin ca status" in done.stderr
        assert WAYS[step] in done.stderr
    new = operator.prepare().authority_id
    operator.activate(new)
    twice = caadmin(server, "activate", "x509", new)
    assert twice.returncode != 0
    assert _says(twice.stderr, f"`{new}` is active since .*: only a prepared one can be activated"), twice.stderr
    early = caadmin(server, "revoke", "x509", active)
    assert early.returncode != 0
    assert f"taint it first (AUTHORITY_STATE) hint: `caadmin ca taint x509 {active}`" in early.stderr
    assert operator.state().active.authority_id == new
    assert roots(server) == {active, new}


def _says(text: str, words: str) -> bool:
    before, _, after = words.partition(".*")
    return before in text and after in text


def test_of_operators_who_activate_at_once_one_does(server: LoneServer) -> None:
    for _ in range(5):
        new = server.operator.prepare().authority_id
        outcomes = _at_once(partial(server.operator.activate, new), 4)
        failed = [one for one in outcomes if one is not None]
        assert len(failed) == 3
        assert {one.reason for one in failed} == {"AUTHORITY_STATE"}
        assert server.operator.state().active.authority_id == new


def test_operators_who_quarrel_break_nothing(server: LoneServer) -> None:
    """Four of them take whatever step comes to their minds, for some seconds; SVIDs are minted all the time."""
    over = time.monotonic() + QUARREL_SECONDS
    seen: list[BurgeeError] = []
    taken: list[str] = []

    def quarrel() -> None:
        operator = Operator(server.admin_socket)
        while time.monotonic() < over or (not set(taken) >= EACH and time.monotonic() < over + NOISE_SECONDS):
            state = operator.state()
            steps: dict[str, Callable[[], object]] = {
                "prepare": operator.prepare,
                "activate": partial(operator.activate, state.prepared.authority_id),
                "taint": partial(operator.taint, state.old.authority_id),
                "revoke": partial(operator.revoke, state.old.authority_id),
            }
            name = random.choice(list(steps))
            try:
                steps[name]()
                taken.append(name)
            except grpc.RpcError as error:
                seen.append(refused(error))

    _at_once(quarrel, 4)
    print(f"{len(taken)} steps taken, {len(seen)} refused")
    assert set(taken) >= EACH
    assert {one.reason for one in seen} <= {"AUTHORITY_STATE", "AUTHORITY_ID_MISSING", "ROTATION_BLOCKED"}
    state = server.operator.state()
    assert state.active.authority_id in roots(server)
    with workloads(server) as asking:
        until("all is well", lambda: server.ready()[0] == 200)
    assert asking.failed == []
    assert "Traceback" not in server.log()


def _at_once(work: Callable[[], object], count: int) -> list[BurgeeError | None]:
    """What came of each: None, or the refusal."""
    gate, outcomes = threading.Barrier(count), list[BurgeeError | None]()

    def one() -> None:
        gate.wait(20)
        try:
            work()
            outcomes.append(None)
        except grpc.RpcError as error:
            outcomes.append(refused(error))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == count
    return outcomes


async def test_an_agent_that_is_gone_for_ever_holds_nothing_up_for_longer_than_its_svid(server: LoneServer) -> None:
    identity = await server.attested(ec.generate_private_key(ec.SECP256R1()))
    ends = identity.leaf.not_valid_after_utc
    new = server.operator.prepare().authority_id
    told = refusal(lambda: server.operator.activate(new))
    assert told.reason == "ROTATION_BLOCKED"
    assert identity.path in told.detail
    assert f"`caadmin ca activate x509 {new} --force`" in told.detail
    waited = when_allowed(lambda: server.operator.activate(new))
    late = datetime.now(UTC) - ends
    print(f"refused for {waited:.1f} s; allowed {late.total_seconds():.1f} s after the agent's end")
    assert timedelta() <= late <= timedelta(seconds=NOISE_SECONDS)
    assert server.operator.state().active.authority_id == new


def test_at_the_last_safe_second_it_goes_on_over_those_who_are_behind() -> None:
    """An agent that never says that it has the next authority: the schedule waits, then gives an alarm and goes on;
    SVIDs are issued throughout, and none is cut short."""
    with lone_server(ca_seconds=CA_SECONDS, svid_seconds=SHORT_SECONDS) as server, workloads(server) as asking:
        first = server.operator.state().active
        until("another signs", lambda: _active(server) != first.authority_id, seconds=CA_SECONDS, every=0.1)
        (held,) = _told(server, "ROTATION_HELD")
        (forced,) = _told(server, "ROTATION_OVERDUE")
        last_safe = first.expires_at - SHORT_SECONDS - MARGIN_SECONDS
        assert datetime.fromisoformat(held["until"]).timestamp() == int(last_safe)
        late = datetime.fromisoformat(forced["timestamp"]).timestamp() - last_safe
        print(f"activated {late:.2f} s after the last safe second")
        assert 0 <= late < MARGIN_SECONDS + SHORT_SECONDS
        assert (forced["level"], forced["authority_id"]) == ("error", _active(server))
        assert forced["cut_off"]
        until("nothing waits any more", lambda: server.ready() == (200, {}))
    assert asking.failed == []
    assert asking.shortest > timedelta(seconds=SHORT_SECONDS - 3)


def _active(server: LoneServer) -> str:
    return server.operator.state().active.authority_id


def _told(server: LoneServer, reason: str) -> list[dict[str, str]]:
    """Lines of the log about X.509 authorities."""
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("reason") == reason and line.get("kind") == "x509"]
