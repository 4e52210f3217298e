"""A group that can open an admin socket, and of which nobody is admitted: both programs say so when they start."""

from __future__ import annotations

import grp
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ca.runtime.config import from_values
from sds.config import AgentConfig
from tests.sds.test_agent import started
from tests.support.server import running_server

GROUP = grp.getgrgid(os.getgid()).gr_name
SAID = "ADMIN_GROUP_ALONE"

Cases = pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"admin_group": GROUP}, True),
        ({"admin_group": GROUP, "admin_uids": [4242]}, False),
        ({"admin_uids": [4242]}, False),
        ({}, False),
    ],
    ids=["group alone", "group and uids", "uids alone", "neither"],
)


@pytest.fixture
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@Cases
async def test_the_server(home: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, Any], said: bool) -> None:
    async with running_server(admin_socket={"path": str(home / "a" / "a.sock"), **settings}):
        pass
    assert (SAID in "".join(capfd.readouterr())) is said


async def agent(home: Path, settings: dict[str, Any], **more: Any) -> None:
    config = {
        "trust_domain": "example.org",
        "data_dir": str(home / "agent"),
        "servers": ["127.0.0.1:1"],
        "workload_socket": str(home / "w" / "w.sock"),
        "admin_socket": {"path": str(home / "a" / "a.sock"), **settings},
        "trust": {"insecure_bootstrap": True},
        "node_attestor": {"join_token": {"token": "t"}},
        "cache": {"persist": "none"},
        "metrics_address": None,
        **more,
    }
    async with started(from_values(config, AgentConfig)):
        pass


@Cases
async def test_the_agent(home: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, Any], said: bool) -> None:
    await agent(home, settings)
    assert (SAID in "".join(capfd.readouterr())) is said


async def test_delegates_are_somebody(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They are admitted by what they are, and the group is how they reach the socket."""
    await agent(home, {"admin_group": GROUP}, authorized_delegates=["spiffe://example.org/proxy"])
    assert SAID not in "".join(capfd.readouterr())
