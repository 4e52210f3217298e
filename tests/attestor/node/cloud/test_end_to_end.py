"""Real servers and agents beside a machine's metadata service: the first agent is the node, and no second is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc
from tests.attestor.node import test_aws_iid, test_azure_imds
from tests.support import cloud_documents as documents
from tests.support.cloud_services import Handle, aws_metadata, azure_metadata, gcp_metadata, service
from tests.support.pair import Pair, pair, until


def aws(_: Path) -> tuple[Handle, dict[str, Any], dict[str, Any]]:
    return aws_metadata(test_aws_iid.SIGNER), test_aws_iid.server(), {}


def gcp(directory: Path) -> tuple[Handle, dict[str, Any], dict[str, Any]]:
    (directory / "keys.json").write_text(json.dumps(documents.gcp_key_set()))
    config = {"projectid_allow_list": [documents.PROJECT], "keys_file": str(directory / "keys.json")}
    config["audience"] = "ours"
    return gcp_metadata(), config, {"audience": "ours"}


def azure(_: Path) -> tuple[Handle, dict[str, Any], dict[str, Any]]:
    metadata = azure_metadata(documents.azure_signer())
    return metadata, test_azure_imds.server(), {"tenant_domain": documents.TENANT_DOMAIN}


METHODS = {
    "aws_iid": (aws, test_aws_iid.PATH, test_aws_iid.SELECTORS),
    "gcp_iit": (
        gcp,
        f"/spire/agent/gcp_iit/{documents.PROJECT}/{documents.GCP_INSTANCE}",
        {f"gcp_iit:project-id:{documents.PROJECT}", "gcp_iit:zone:us-west1-b"},
    ),
    "azure_imds": (azure, test_azure_imds.PATH, test_azure_imds.SELECTORS),
}


@contextmanager
def node(name: str, directory: Path) -> Iterator[Pair]:
    metadata, server, agent = METHODS[name][0](directory)
    with service(metadata) as running:
        endpoint = {"metadata_endpoint": running.url}
        with pair(server={"node_attestors": {name: server}}, agent={"node_attestor": {name: agent | endpoint}}) as both:
            yield both


def selectors_of(both: Pair, path: str) -> set[str]:
    with grpc.insecure_channel(f"unix:{both.admin_socket}") as channel:
        agents = server_agent_pb2_grpc.AgentStub(channel).ListAgents(server_agent_pb2.ListAgentsRequest(), timeout=10)
    (agent,) = [agent for agent in agents.agents if agent.id.path == path]
    assert not agent.can_reattest
    return {f"{selector.type}:{selector.value}" for selector in agent.selectors}


@pytest.mark.parametrize("name", METHODS)
def test_the_first_agent_is_the_node_and_no_second_is(name: str, tmp_path: Path) -> None:
    _, path, selectors = METHODS[name]
    with node(name, tmp_path) as both:
        assert until("the agent has its ID", both.agent_path) == path
        assert selectors <= selectors_of(both, path)
        both.stop("agent")
        for state in (both.home / "agent", both.home / "cache"):
            shutil.rmtree(state, ignore_errors=True)
        both.launch("agent")
        until("it is refused", lambda: "AGENT_ALREADY_ATTESTED" in both.logs())
