"""The own server and agent of the getting-started page, typed as the page has it, with other places and ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs.reason_codes import ROOT
from tests.support.pair import free_port, until

PAGE = (ROOT / "docs/getting-started.md").read_text()
SECTION = PAGE.partition("## A server and an agent of their own")[2]
BLOCKS = re.compile(r"```(yaml|sh)\n(.*?)```", re.S)
PROGRAM = re.compile(r"^(burgee|caadmin) ", re.M)


class Desk:
    """A directory in place of `/etc/burgee` and `/var/lib/burgee`, and the programs that stay in the foreground."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.running: list[subprocess.Popen[bytes]] = []
        (home / "etc").mkdir()

    def moved(self, text: str) -> str:
        places = {"/etc/burgee": "etc", "/var/lib/burgee": "lib"}
        for place, name in places.items():
            text = text.replace(place, str(self.home / name))
        return text.replace("8081", str(self.port))

    def file(self, name: str) -> Path:
        return self.home / "etc" / f"{name}.yaml"

    def write(self, text: str) -> None:
        """One of the two configurations."""
        self.file("agent" if "servers" in text else "server").write_text(self.moved(text))

    def settle(self, name: str) -> None:
        """Move what would lie in the machine's own directories, or listen at its own ports."""
        config = yaml.safe_load(self.file(name).read_text())
        config["metrics_address"] = None
        if name == "agent":
            config |= {"workload_socket": str(self.home / "w" / "w.sock"), "cache": {"directory": str(self.home / "c")}}
        else:
            config |= {"bind_address": "127.0.0.1", "bind_port": self.port}
        self.file(name).write_text(yaml.safe_dump(config))

    def type(self, line: str) -> str:
        """What it prints; nothing of one that stays in the foreground."""
        programs = Path(sys.executable).parent
        line = PROGRAM.sub(rf"{programs}/\1 ", self.moved(line))
        environment = {
            **os.environ,
            "BURGEE_ADMIN_SOCKET": str(self.home / "lib/server/run/admin.sock"),
            "BURGEE_AGENT_SOCKET": str(self.home / "lib/agent/run/admin.sock"),
        }
        if program := re.search(r"burgee (server|agent) ", line):
            self.settle(program[1])
            self.running.append(subprocess.Popen(["sh", "-c", f"exec {line}"], cwd=self.home, env=environment))
            return ""
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.home, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def desk() -> Iterator[Desk]:
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    made = Desk(home)
    yield made
    for process in made.running:
        process.terminate()
        process.wait(30)
    shutil.rmtree(home)


@pytest.mark.slow
def test_the_pair_comes_up_as_the_page_says(desk: Desk) -> None:
    said = ""
    for kind, block in BLOCKS.findall(SECTION):
        if kind == "yaml":
            desk.write(block)
            continue
        for line in block.splitlines():
            if line.startswith("caadmin bundle show"):  # a person sees that the server is up
                until("the server answers", lambda: desk.type("caadmin health"), seconds=45)
            if line.startswith("caadmin agent list"):
                until("the agent is well", lambda: desk.type("caadmin health --agent"), seconds=45)
            said += desk.type(line)
    assert said.count(": valid (") == 2
    assert "spiffe://example.org/spire/agent/join_token/" in said
    assert re.search(r"^Agent +OK$", said, re.M)
    assert (desk.home / "etc/token").stat().st_mode & 0o777 == 0o600


def test_the_section_says_to_stop_the_demo_first_and_shows_both_programs() -> None:
    """What reads the page finds it; and port 8081 is the server's own default."""
    lines = [line for kind, block in BLOCKS.findall(SECTION) if kind == "sh" for line in block.splitlines()]
    assert {line.partition(" --config")[0] for line in lines if "--config" in line} == {"burgee server", "burgee agent"}
    before = SECTION[: SECTION.index("```")]
    assert "End `make up` first" in before
    assert "8081" in before
    assert PAGE.index("source .venv/bin/activate") < PAGE.index("burgee up --once")
