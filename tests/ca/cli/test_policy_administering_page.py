"""The page on administering policies is true: its commands print that, on a real server and agent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reason_codes import ROOT
from tests.support.pair import Pair, pair

PAGE = ROOT / "docs" / "policy" / "administering.md"
_BLOCK = re.compile(r'^```(?:\w+ title="([^"]+)"|console)\n(.*?)^```', re.M | re.S)
_VARIES = [
    (re.compile(r"spiffe://[\w.]+/spire/agent/\S+"), "AGENT"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"uid:\d+"), "uid:N"),
]


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.pair.TRUST_DOMAIN", "example.org")
        with pair() as made:
            made.create_entry("/ns/shop/sa/orders")
            yield made


def same(text: str) -> str:
    """Without what differs from run to run."""
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def shell(running: Pair, directory: Path, command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BURGEE_ADMIN_SOCKET": str(running.admin_socket),
        "BURGEE_AGENT_SOCKET": str(running.agent_admin_socket),
    }
    return subprocess.run(
        ["sh", "-c", command], cwd=directory, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_page_is_true(running: Pair, tmp_path: Path) -> None:
    ran = []
    for name, content in _BLOCK.findall(PAGE.read_text()):
        if name:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        elif name == "":
            command, _, output = content.removeprefix("$ ").partition("\n")
            done = shell(running, tmp_path, command)
            assert (same(done.stdout), done.stderr) == (same(output), ""), command
            ran.append(command)
    assert len(ran) > 10
    for script in ("check.sh", "apply.sh"):
        done = shell(running, tmp_path, f"sh ci/{script}")
        assert done.returncode == 0, (done.stdout, done.stderr)
    assert "commit unknown" in shell(running, tmp_path, "caadmin policy revisions list").stdout
