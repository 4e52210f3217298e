"""How long each workload attestor may take: as configured, else as it says itself, else as most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attestor.workload.run import TIMEOUT_SECONDS
from ca.errors import ConfigError
from ca.identity.selector import Selector
from ca.ports import Process
from ca.runtime.config import from_values
from sds.config import AgentConfig
from sds.plugins import deadlines


class Plain:
    async def attest(self, process: Process) -> frozenset[Selector]:
        return frozenset()


class Slow(Plain):
    deadline_seconds = 30.0


def config(tmp_path: Path, **values: Any) -> AgentConfig:
    return from_values(
        {
            "trust_domain": "example.org",
            "data_dir": str(tmp_path),
            "servers": ["h:1"],
            "trust": {"insecure_bootstrap": True},
            "node_attestor": {"join_token": {}},
            "workload_attestors": {"unix": {}, "slow": {}, "other": {}},
            **values,
        },
        AgentConfig,
    )


def test_configured_else_its_own_else_the_common_one(tmp_path: Path) -> None:
    attestors = {"unix": Plain(), "slow": Slow(), "other": Slow()}
    configured = config(tmp_path, attestor_deadlines_seconds={"other": 1.5})
    assert deadlines(configured, attestors) == {"unix": TIMEOUT_SECONDS, "slow": 30.0, "other": 1.5}


@pytest.mark.parametrize("wrong", [{"none": 1}, {"unix": 0}, {"unix": -1}, {"unix": 301}, {"unix": "soon"}])
def test_a_deadline_is_some_seconds_of_an_attestor_that_there_is(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config(tmp_path, attestor_deadlines_seconds=wrong)
