"""The commands of the page about missing identities, typed as it has them, do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.pair import Pair, pair, until

PAGE = ROOT / "docs/why-not.md"
COMMANDS = [line for block in blocks(PAGE, "sh") for line in block.splitlines()]
CAADMIN = Path(sys.executable).parent / "caadmin"
pytestmark = pytest.mark.xdist_group("why-not")


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    """As in the page's example: one attestor cannot do its work, and the nearest entry rests on it."""
    attestors = {"unix": {}, "systemd": {"bus_socket_path": "/nonexistent/bus"}}
    with pair(agent={"workload_attestors": attestors}) as made:
        made.create_entry("/web", "systemd:id:web.service")
        until("the agent has the entry", lambda: made.status().entries == 1)
        yield made


def typed(running: Pair, line: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "BURGEE_ADMIN_SOCKET": str(running.admin_socket),
        "BURGEE_AGENT_SOCKET": str(running.agent_admin_socket),
        "SPIFFE_ENDPOINT_SOCKET": f"unix://{running.workload_socket}",
    }
    command = line.replace("caadmin", str(CAADMIN), 1)
    return subprocess.run(
        ["sh", "-c", command],
        env=environment,
        cwd=running.home,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_every_command_does_what_the_page_says(running: Pair) -> None:
    app = running.home / "app"
    app.write_text('#!/bin/sh\necho "started with $*"\n')
    app.chmod(0o755)
    node = running.agent_path().rpartition("/")[2]
    told = ""
    seen = []
    for line in COMMANDS:
        if "cluster" in line:
            continue  # it has a real API server in the tests of `caadmin doctor`
        if line.startswith("caadmin wait"):
            running.create_entry("/app")
        line = line.replace("5532", str(os.getpid())).replace("8ae89eee-6", told).replace("agent n1", f"agent {node}")
        done = typed(running, line)
        said = done.stdout + done.stderr
        seen.append(line.split()[1])
        match line.split()[1:3]:
            case ["svid", "fetch"]:
                assert done.returncode == 3
                found = re.search(r"explain workload --id ([0-9a-f-]+)", said)
                assert found is not None, said
                told = found[1]
            case ["explain", "workload"]:
                assert done.returncode == 3, said
                assert "verdict     NO_IDENTITY reason=ATTESTOR_FAILED" in said
                assert labels(said) == [label for label in labels(example()) if label in labels(said)], "in this order"
                assert set(labels(example())) - set(labels(said)) <= {"before"}
            case ["wait", "--for"]:
                assert (done.returncode, done.stdout) == (0, "started with --port 8080\n"), said
            case ["doctor", *which] if which != ["server"]:
                assert (done.returncode, "FAILED   systemd" in said) == (1, True), said  # the bus that is not there
            case _:
                assert done.returncode == 0, said
    assert seen == ["explain", "svid", "explain", "explain", "doctor", "doctor", "doctor", "wait"]


def test_the_page_shows_the_reasons_of_the_verdict() -> None:
    """Those that it calls the most met are ones that there are (tests/docs/test_truth.py), and the causes are all in
    the reference."""
    from sds.verdict import Cause

    text = PAGE.read_text()
    for cause in set(Cause) - {Cause.MENDED_REASON}:
        assert f"`{cause.value}`" in text, cause


def example() -> str:
    (block,) = blocks(PAGE, "text")
    return block


def labels(page: str) -> list[str]:
    return re.findall(r"^([a-z]+) {2,}", page, re.M)
