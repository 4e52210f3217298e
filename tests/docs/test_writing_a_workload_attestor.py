"""The page's package is built from the page, passes the contract, and earns an identity on a real agent."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.test_writing_a_node_attestor import _COMMANDS, _FILE, ROOT, installed
from tests.support.pair import pair, until
from tests.support.workload_client import WorkloadClient

PAGE = ROOT / "docs/plugins/writing-a-workload-attestor.md"
FILES = dict(_FILE.findall(PAGE.read_text()))
(CONTRACT,) = _COMMANDS.findall(PAGE.read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory, {name: text for name, text in FILES.items() if name != "agent.yaml"})


def test_it_keeps_the_contract(site: Path) -> None:
    done = subprocess.run(
        [sys.executable, *CONTRACT.split()[1:], "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 6, done.stdout[-500:]


def test_its_selectors_earn_an_identity(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    (path,) = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    with pair(agent=yaml.safe_load(FILES["agent.yaml"])) as both:
        both.create_entry("/by-cgroup", f"cgroup:path:{path}")
        ids = until("this process has its identity", lambda: asyncio.run(identities(both.workload_socket)))
        assert ids == ["spiffe://pair.test/by-cgroup"]


async def identities(socket: Path) -> list[str]:
    async with WorkloadClient(str(socket)) as client:
        return [svid.spiffe_id for svid in (await client.x509_svids().read()).svids]
