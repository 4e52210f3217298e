"""`caadmin explain` where the agent itself is at fault: it has no identity, or hears no news of its server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ca.cli.conftest import Caadmin
from tests.support.pair import Pair, until


@pytest.fixture
def running() -> Iterator[Pair]:
    """A server, and an agent that has nothing to prove its node with."""
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    made = Pair(home)
    try:
        made.start_server()
        made.launch("agent")
        yield made
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def verdict(live: Caadmin) -> tuple[str, str, str]:
    """(what the workload is told, the cause, what to type next), and that the workload is told that."""
    said = live("explain", "workload", "--pid", str(os.getpid()), "-o", "json")
    assert said.code == 3, said.out + said.err
    found = said.json["verdict"]
    assert f"({found['told']})" in live("svid", "fetch").err
    return found["told"], found["reason"], found["command"]


def test_the_agent_is_at_fault(live: Caadmin, running: Pair) -> None:
    until("the agent says what it lacks", lambda: running.status().reason == "JOIN_TOKEN_MISSING")
    assert verdict(live) == ("AGENT_NOT_READY", "JOIN_TOKEN_MISSING", "caadmin health --agent")
    doctor = live("doctor", "agent", "-o", "json")
    assert doctor.code == 1
    (identity,) = (one for one in doctor.json["agent"] if one["what"] == "identity")
    assert (identity["level"], "caadmin token create" in identity["hint"]) == ("failed", True)

    (running.home / "token").write_text(running.create_token())
    until("the agent is OK", lambda: running.status().state == "OK")
    assert verdict(live)[:2] == ("NO_IDENTITY", "NO_ENTRY")

    running.stop("server")
    until("the agent notices", lambda: running.status().state == "DEGRADED", seconds=60)
    assert verdict(live) == ("NO_IDENTITY", "AGENT_OUT_OF_TOUCH", "caadmin health --agent")
    doctor = live("doctor", "agent", "-o", "json")
    assert doctor.code == 1
    found = {one["what"]: one for one in doctor.json["agent"]}
    assert found["reachability"]["level"] == "failed"
    assert found["reachability"]["hint"]
