"""`caadmin ca rotate --force`: who is about to be ready is waited for, and nobody is cut off without being named."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from ca.cli import ca_rotate
from ca.cli.ca_rotate import MOST_SECONDS, SETTLE_SECONDS
from ca.errors import FailedPrecondition
from ca.proto.burgee import authority_pb2 as pb
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import Pair, pair, until

AGENT = "spiffe://example.org/spire/agent/x/n{}"


class Script:
    """A server whose successor signs already: the old one is to be revoked, and hangs on those who `remain` by second;
    a clock that moves when somebody sleeps."""

    def __init__(self, *remain: int) -> None:
        self._remain = remain
        self.now = 0.0
        self.forced_at: float | None = None
        self.sent: list[pb.RotateRequest] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def call(self, request: pb.RotateRequest) -> pb.RotateResponse:
        sent = pb.RotateRequest()
        sent.CopyFrom(request)
        self.sent.append(sent)
        number = self._remain[min(int(self.now), len(self._remain) - 1)]
        done = not request.dry_run and (request.force or not number)
        if request.force:
            self.forced_at = self.now
        waits = [pb.Blocker(kind="agent", who=AGENT.format(n), reason="AGENT_SVID_LIVE") for n in range(number)]
        shown = [] if done else waits
        return pb.RotateResponse(
            replacing="old", step="revoke", done=done, finished=done, waits_for=shown, waits_for_total=len(shown)
        )


@pytest.fixture
def at() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def forced(script: Script, at: pytest.MonkeyPatch, *, yes: bool = True) -> dict[str, object]:
    at.setattr(ca_rotate.time, "sleep", script.sleep)
    at.setattr(ca_rotate.time, "monotonic", lambda: script.now)
    walk = ca_rotate._Walk("x509", script.call, loud=True)
    return walk.run(pb.RotateRequest(kind="x509", taint=True), force=True, yes=yes)


def test_with_all_ready_in_time_nobody_is_cut_off(at: pytest.MonkeyPatch) -> None:
    script = Script(1000, 600, 600, 20, 0)
    assert forced(script, at)["cut_off"] == []
    assert script.forced_at is None


def test_who_stays_behind_is_named_and_cut_off(at: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(1000, 600, 20, 1)
    cut_off = forced(script, at)["cut_off"]
    assert isinstance(cut_off, list)
    assert [one["who"] for one in cut_off] == [AGENT.format(0)]
    assert script.forced_at == 3 + SETTLE_SECONDS
    assert f"cutting off with revoke:\n  agent {AGENT.format(0)}" in capsys.readouterr().err


def test_it_does_not_wait_for_a_trickle(at: pytest.MonkeyPatch) -> None:
    script = Script(*range(1000, 1, -1))
    forced(script, at)
    assert script.forced_at == MOST_SECONDS


def test_nobody_is_cut_off_without_a_yes(at: pytest.MonkeyPatch) -> None:
    script = Script(1)
    at.setattr("sys.stdin", io.StringIO())
    with pytest.raises(FailedPrecondition) as refused:
        forced(script, at, yes=False)
    assert refused.value.reason == "NOT_CONFIRMED"
    assert script.forced_at is None


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    with pair(server={"consumer_waits": {"files_seconds": 0}}) as both:
        both.create_entry("/web")
        until("the workload's SVID", lambda: both.status().x509_svids == 1)
        yield both


def test_the_whole_emergency_leaves_agents_that_answer_well(live: Caadmin, running: Pair) -> None:
    """The agent has joined with a token: were it cut off, it could not come back."""
    done = live("ca", "rotate", "x509", "--taint", "--force", "--yes", "-o", "json")
    assert done.code == 0, done.err
    assert (done.json["step"], done.json["cut_off"]) == ("revoke", [])
    assert running.status().state == "OK"
    running.create_entry("/later")
    until("the agent gets more", lambda: running.status().x509_svids == 2)


def test_what_never_was_is_not_gone_on_with(live: Caadmin, running: Pair) -> None:
    refused = live("ca", "rotate", "x509", "--replacing", "nobody")
    assert (refused.code, "AUTHORITY_UNKNOWN" in refused.err) == (3, True)
    assert "go on with" not in refused.err
