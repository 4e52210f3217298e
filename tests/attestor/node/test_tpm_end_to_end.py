"""A node with a TPM: a real server, a real agent and a software TPM, each a process of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc
from tests.attestor.node.tpm_lab import policy
from tests.support.pair import Pair, until
from tests.support.swtpm import factory, usual_tpm

pytestmark = [pytest.mark.real("swtpm"), pytest.mark.xdist_group("swtpm")]


@pytest.fixture
def pair() -> Iterator[Pair]:
    attestors = {"tpm_devid": {**factory().server, **policy()}}
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    made = Pair(
        home,
        server={"node_attestors": attestors},
        agent={"node_attestor": {"tpm_devid": usual_tpm().agent(tpm_device_path=str(home / "tpm"))}},
    )
    try:
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def attested(pair: Pair) -> list[Any]:
    with grpc.insecure_channel(f"unix:{pair.admin_socket}") as channel:
        agents = server_agent_pb2_grpc.AgentStub(channel)
        return list(agents.ListAgents(server_agent_pb2.ListAgentsRequest(), timeout=10).agents)


def test_an_agent_waits_for_its_tpm_and_is_then_known_by_its_devid(pair: Pair) -> None:
    """Without a TPM it says so and goes on trying; nobody restarts it."""
    pair.start_server()
    pair.launch("agent")
    until("the agent misses its TPM", lambda: "TPM_MISSING" in pair.logs())
    assert not attested(pair)
    (pair.home / "tpm").symlink_to(usual_tpm().socket)
    until("the agent is OK", lambda: pair.status().state == "OK", seconds=60)
    (agent,) = attested(pair)
    assert agent.attestation_type == "tpm_devid"
    assert agent.id.path.startswith("/spire/agent/tpm_devid/")
    assert agent.can_reattest
    assert "subject:cn:devid-42" in {selector.value for selector in agent.selectors}
    assert not usual_tpm().loaded()
