"""`caadmin wait` starts a program when its identity is there, in its own place, and else says why not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.cli.wait import become, until
from ca.errors import Denied, FailedPrecondition, InvalidArgument, NotFound
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import Pair
from tests.support.pair import until as eventually

pytestmark = pytest.mark.xdist_group("wait")
CAADMIN = str(Path(sys.executable).parent / "caadmin")
PROGRAM = "echo $$; grep SigIgn /proc/$$/status"


def start(running: Pair, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{running.workload_socket}"}
    return subprocess.Popen(
        [CAADMIN, "wait", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def identity(live: Caadmin, running: Pair) -> Iterator[None]:
    """This process's user has one while the test runs."""
    entry = running.create_entry("/waited")
    eventually("it has an identity", lambda: live("svid", "fetch").code == 0)
    yield
    running.delete_entry(entry)
    eventually("it has none", lambda: live("svid", "fetch").code == 3)


def test_without_an_identity_the_time_runs_out_and_says_why(live: Caadmin, running: Pair) -> None:
    eventually("it has none", lambda: live("svid", "fetch").code == 3)
    said = live("wait", "--timeout", "1s", "--", "touch", "never")
    assert said.code == 1
    assert "no X.509-SVID in time; last: no identity issued (NO_IDENTITY) (WAIT_TIMEOUT)" in said.err
    assert re.search(r"caadmin explain workload --id [0-9a-f]{8}-[0-9a-f]+", said.err)
    assert not Path("never").exists()


def test_the_program_starts_once_the_identity_is_there_and_is_this_process(live: Caadmin, running: Pair) -> None:
    waiting = start(running, "--timeout", "60s", "--", "sh", "-c", PROGRAM)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    entry = running.create_entry("/waited")
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, err
    running.delete_entry(entry)
    pid, _, ignored = out.split()
    assert int(pid) == waiting.pid, "the same process"
    assert not int(ignored, 16) & 1 << signal.SIGPIPE - 1, "with its signals as they were at first"


def test_signals_and_exit_codes_are_the_programs_own(live: Caadmin, running: Pair, identity: None) -> None:
    program = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done"
    waiting = start(running, "--", "sh", "-c", program)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "ready\n"
    waiting.send_signal(signal.SIGTERM)
    waiting.communicate(timeout=20)
    assert waiting.returncode == 42


def test_only_the_identity_that_is_named_will_do(live: Caadmin, running: Pair, identity: None) -> None:
    said = live("wait", "--id", "spiffe://pair.test/another", "--timeout", "1s")
    assert said.code == 1
    assert "no X.509-SVID of `spiffe://pair.test/another` in time" in said.err
    assert "SVID_NOT_GIVEN" in said.err
    assert live("wait", "--id", "spiffe://pair.test/waited", "--timeout", "20s").code == 0


@pytest.mark.parametrize("options", [["--for", "bundle"], ["--for", "jwt", "--audience", "db"], []])
def test_each_kind_can_be_waited_for(live: Caadmin, identity: None, options: list[str]) -> None:
    """Without a command it is a step of a script, or an init container."""
    assert live("wait", *options, "--timeout", "20s").code == 0


def test_an_agent_that_starts_later_is_waited_for(live: Caadmin, tmp_path: Path) -> None:
    said = live("wait", "--timeout", "1s", "--endpoint", f"unix://{tmp_path}/none.sock")
    assert said.code == 1
    assert "(UNREACHABLE) (WAIT_TIMEOUT)" in said.err


@pytest.mark.parametrize(
    "options",
    [
        ["--for", "jwt"],
        ["--audience", "db"],
        ["--for", "bundle", "--id", "spiffe://pair.test/a"],
        ["--id", "nonsense"],
        ["--timeout", "0"],
        ["--endpoint", "ftp://x"],
    ],
)
def test_what_can_never_come_is_not_waited_for(live: Caadmin, options: list[str]) -> None:
    assert live("wait", *options).code == 2


def test_a_program_that_cannot_run(live: Caadmin, running: Pair, identity: None) -> None:
    waiting = start(running, "--timeout", "20s", "--", "/nonexistent/program")
    _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 3
    assert "cannot run `/nonexistent/program`: No such file or directory (COMMAND)" in err


def test_a_refusal_is_asked_about_again_and_what_is_malformed_is_not() -> None:
    asked: list[float] = []

    def refuse(seconds: float) -> None:
        asked.append(seconds)
        raise Denied("no identity issued", reason="NO_IDENTITY", hint="look there")

    with pytest.raises(FailedPrecondition) as over:
        until(refuse, time.monotonic() + 0.5, "SVID")
    assert over.value.hint == "look there"
    assert len(asked) >= 3

    def malformed(seconds: float) -> None:
        asked.append(seconds)
        raise InvalidArgument("no", reason="ENDPOINT_MALFORMED")

    asked.clear()
    with pytest.raises(InvalidArgument):
        until(malformed, time.monotonic() + 60, "SVID")
    assert len(asked) == 1


def test_a_missing_program_is_an_error_of_ours() -> None:
    before = signal.getsignal(signal.SIGPIPE)
    assert threading.current_thread() is threading.main_thread()
    try:
        with pytest.raises(NotFound):
            become(["/nonexistent/program"])
    finally:
        signal.signal(signal.SIGPIPE, before)
