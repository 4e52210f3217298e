"""What every workload attestor promises; plugins are found by entry point, a stranger's like our own."""

from __future__ import annotations

import asyncio
import os

import pytest

from attestor.workload.run import attest_all
from ca.errors import ConfigError, Unauthenticated, Unavailable
from ca.ports import WorkloadAttestor, WorkloadAttestorPlugin
from ca.runtime import plugins
from ca.runtime.config import from_values
from tests.attestor.processes import SLEEP, child, pinned
from tests.contracts.attestors import WorkloadSample, check_model, sample

NAMES = plugins.names(plugins.WORKLOAD_ATTESTORS)


@pytest.fixture(params=NAMES)
def plugin(request: pytest.FixtureRequest) -> WorkloadAttestorPlugin:
    return plugins.load(plugins.WORKLOAD_ATTESTORS, request.param, WorkloadAttestorPlugin)


@pytest.fixture
def given_sample(plugin: WorkloadAttestorPlugin) -> WorkloadSample:
    found: WorkloadSample = sample("workload", plugin.name)
    return found


@pytest.fixture
def attestor(plugin: WorkloadAttestorPlugin, given_sample: WorkloadSample) -> WorkloadAttestor:
    return plugin.attestor(from_values(given_sample.config, plugin.config))


def test_there_are_plugins() -> None:
    assert "unix" in NAMES


def test_its_name_is_its_entry_points(plugin: WorkloadAttestorPlugin, request: pytest.FixtureRequest) -> None:
    assert plugin.name == request.node.callspec.params["plugin"]


def test_its_configuration_is_strict_and_documented(
    plugin: WorkloadAttestorPlugin, given_sample: WorkloadSample
) -> None:
    check_model(plugin.config)
    with pytest.raises(ConfigError):
        from_values({**given_sample.config, "no_such_key": 1}, plugin.config)


async def test_it_finds_selectors_of_its_own_type(
    plugin: WorkloadAttestorPlugin, given_sample: WorkloadSample, attestor: WorkloadAttestor
) -> None:
    with pinned(os.getpid(), given_sample.tree) as process:
        found = await attestor.attest(process)
        assert found == (await attest_all({plugin.name: attestor}, process)).selectors
    assert found
    assert {selector.type for selector in found} == {plugin.name}


async def test_the_same_process_gives_the_same_answer_at_the_same_time(
    attestor: WorkloadAttestor, given_sample: WorkloadSample
) -> None:
    with pinned(os.getpid(), given_sample.tree) as process:
        answers = await asyncio.gather(*(attestor.attest(process) for _ in range(8)))
    assert len(set(answers)) == 1


async def test_a_process_that_has_gone_gets_nothing(attestor: WorkloadAttestor, given_sample: WorkloadSample) -> None:
    with child([SLEEP, "60"]) as process, pinned(process.pid, given_sample.tree) as pin:
        process.kill()
        process.wait()
        with pytest.raises((Unauthenticated, Unavailable)):
            await attestor.attest(pin)


@pytest.mark.parametrize("check", [1, 2])
async def test_it_asks_whether_the_caller_is_still_there(
    attestor: WorkloadAttestor, given_sample: WorkloadSample, check: int
) -> None:
    """Before it looks, and after."""
    with pinned(os.getpid(), given_sample.tree) as process:
        process.dies_at_check = check
        with pytest.raises(Unauthenticated):
            await attestor.attest(process)
