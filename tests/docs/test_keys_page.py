"""Keys and rotation: every command of the page, in its order, against a real server with a real agent."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

PAGE = ROOT / "docs/keys-and-rotation.md"
CAADMIN = str(Path(sys.executable).parent / "caadmin")


def commands() -> list[str]:
    return [line.strip() for block in blocks(PAGE, "sh") for line in block.splitlines() if line.strip()]


class OnCall:
    """Types what the page says, with the IDs that the status shows in place of its words in capitals."""

    def __init__(self, both: Pair, gone: str) -> None:
        self.both = both
        self.gone = gone

    def type(self, line: str) -> str:
        line = line.replace("example.org", TRUST_DOMAIN)
        if "_ID" in line:
            for word, name in self.names().items():
                line = line.replace(word, name)
        done = self.run(*shlex.split(line)[1:])
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "BURGEE_ADMIN_SOCKET": str(self.both.admin_socket),
            "BURGEE_AGENT_SOCKET": str(self.both.agent_admin_socket),
        }
        program = [CAADMIN] if Path(CAADMIN).exists() else [sys.executable, "-m", "ca.cli.caadmin"]
        return subprocess.run(
            [*program, *words], env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    def names(self) -> dict[str, str]:
        status = json.loads(self.run("ca", "status", "--kind", "x509", "-o", "json").stdout)
        by_state = {one["status"]: one["authority_id"] for one in status["authorities"]}
        new = by_state.get("prepared", by_state["active"])
        return {"NEW_ID": new, "OLD_ID": by_state.get("old", ""), "GONE_ID": self.gone}


@pytest.fixture
def on_call() -> Iterator[OnCall]:
    with pair(server={"consumer_waits": {"files_seconds": 0}}) as both:
        both.create_entry("/web")
        until("the workload's SVID", lambda: both.status().x509_svids == 1)
        gone = both.status().spiffe_id
        both.stop("agent", sign=signal.SIGKILL)  # a node that is gone for ever
        for place in (both.home / "agent", both.home / "cache"):
            shutil.rmtree(place, ignore_errors=True)
        (both.home / "token").unlink()
        both.start_agent()
        both.create_entry("/web")
        until("the workload's SVID", lambda: both.status().x509_svids == 1)
        yield OnCall(both, gone)


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(on_call: OnCall) -> None:
    """In the page's order, but that the node that is gone for ever is evicted first, for everything waits for it."""
    waits = json.loads(on_call.run("ca", "status", "-o", "json").stdout)
    assert waits["agents"] == 2
    evict = next(line for line in commands() if line.startswith("caadmin agent evict"))
    on_call.type(evict)
    said = {line: on_call.type(line) for line in commands() if line != evict}
    assert said["caadmin ca rotate x509 --keep"].endswith(" is replaced\n")
    assert said["caadmin ca activate x509 NEW_ID"].endswith(" signs now\n")
    assert "[x] published" in said["caadmin ca status"]
    assert "this server signs its own roots" in said["caadmin upstream check"]
    assert "taint" in said["caadmin audit --since 10m"]
    assert on_call.both.status().state == "OK"


def test_what_reads_the_page_finds_its_commands() -> None:
    lines = commands()
    assert len(lines) >= 20
    assert all(line.startswith("caadmin ") for line in lines)
    verbs = {match[1] for line in lines if (match := re.match(r"caadmin ca (\w+)", line))}
    assert verbs == {"status", "prepare", "activate", "prune", "rotate"}
