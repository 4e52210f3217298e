"""What every node attestor promises; plugins are found by entry point, a stranger's like our own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument
from ca.identity.spiffe_id import AGENT_PREFIX, SpiffeId
from ca.ports import AttestedNode, NodeAttestorPlugin, NodeProver, NodeVerifier
from ca.runtime import plugins
from ca.runtime.config import from_values
from tests.contracts.attestors import NodeSample, check_model, sample

NAMES = plugins.names(plugins.NODE_ATTESTORS)


@pytest.fixture(params=NAMES)
def plugin(request: pytest.FixtureRequest) -> NodeAttestorPlugin:
    return plugins.load(plugins.NODE_ATTESTORS, request.param, NodeAttestorPlugin)


@pytest.fixture
def given_sample(plugin: NodeAttestorPlugin) -> NodeSample:
    found: NodeSample = sample("node", plugin.name)
    return found


@pytest.fixture
def verifier(plugin: NodeAttestorPlugin, given_sample: NodeSample) -> NodeVerifier:
    return plugin.verifier(from_values(given_sample.server, plugin.server_config), given_sample.host)


@pytest.fixture
def prover(plugin: NodeAttestorPlugin, given_sample: NodeSample) -> NodeProver:
    return plugin.prover(from_values(given_sample.agent, plugin.agent_config))


async def attest(verifier: NodeVerifier, prover: NodeProver) -> AttestedNode:
    return await verifier.verify(await prover.payload(), prover.answer)


def test_there_are_plugins() -> None:
    assert "join_token" in NAMES


def test_its_name_is_its_entry_points(plugin: NodeAttestorPlugin, request: pytest.FixtureRequest) -> None:
    assert plugin.name == request.node.callspec.params["plugin"]


def test_its_configurations_are_strict_and_documented(plugin: NodeAttestorPlugin, given_sample: NodeSample) -> None:
    for model, values in ((plugin.server_config, given_sample.server), (plugin.agent_config, given_sample.agent)):
        check_model(model)
        with pytest.raises(ConfigError):
            from_values({**values, "no_such_key": 1}, model)


async def test_the_right_node_is_attested_under_the_plugins_name(
    plugin: NodeAttestorPlugin, given_sample: NodeSample, verifier: NodeVerifier, prover: NodeProver
) -> None:
    assert prover.can_reattest in (True, False)
    node = await attest(verifier, prover)
    assert node.path.startswith(f"{AGENT_PREFIX}{plugin.name}/")
    SpiffeId.of(given_sample.host.trust_domain, node.path)
    assert all(selector.type == plugin.name for selector in node.selectors)


async def test_what_proves_once_proves_once(verifier: NodeVerifier, prover: NodeProver) -> None:
    """A node that cannot attest again says so before it tries. When it does it is refused, or proves the same node:
    evidence that anybody on the node can read is trusted on first use, and that there is no second is the server's
    own to see (tests/ca/api/test_attestors.py)."""
    node = await attest(verifier, prover)
    if node.reattestable:
        assert prover.can_reattest
        assert (await attest(verifier, prover)).path == node.path
        return
    assert not prover.can_reattest
    try:
        again = await attest(verifier, prover)
    except (Denied, InvalidArgument, FailedPrecondition):
        return
    assert (again.path, again.reattestable) == (node.path, False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda text: text.encode())))
@example(payload=b"")
@example(payload=b"{}")
@example(payload=b"null")
@example(payload=b"\x00" * 100_000)
async def test_junk_is_refused_and_nothing_else_happens(verifier: NodeVerifier, payload: bytes) -> None:
    async def answer(_: bytes) -> bytes:
        return payload

    with pytest.raises((Denied, InvalidArgument)):
        await verifier.verify(payload, answer)


async def test_a_junk_challenge_does_not_crash_the_agent(prover: NodeProver) -> None:
    await prover.payload()
    answers: list[Any] = []
    for challenge in (b"", b"\xff" * 1000, b"{}"):
        try:
            answers.append(await prover.answer(challenge))
        except BurgeeError as error:
            answers.append(error.detail)
    assert all(answers)


def test_a_program_that_made_every_sample_ends() -> None:
    """What samples start for all of a process is over with it: nobody waits for a thread that is no more."""
    program = (
        "from ca.runtime import plugins\n"
        "from tests.contracts.attestors import sample\n"
        "for name in plugins.names(plugins.NODE_ATTESTORS): sample('node', name)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True, timeout=100)
