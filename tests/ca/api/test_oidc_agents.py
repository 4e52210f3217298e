"""Agents that tokens of an OIDC issuer make, where several tokens say the same of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ca.proto.spire import server_agent_pb2
from tests.ca.api.refusals import refused
from tests.ca.api.test_exchange import attestors
from tests.support.oidc_issuer import OidcIssuer
from tests.support.server import RunningServer, attest, make_csr, running_server, spiffe_id

TEMPLATE = "/{{ .PluginName }}/{{ .IssuerName }}/{{ .SubjectHash }}"


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with OidcIssuer() as running:
        yield running


async def come(server: RunningServer, token: str, csr: bytes = b"") -> str:
    result = await attest(await server.caller(), token.encode(), csr or make_csr(), "oidc")
    path: str = result.svid.id.path
    return path


async def test_another_token_makes_nobody_an_agent_that_there_is(issuer: OidcIssuer, tmp_path: Path) -> None:
    """The first who comes is the node, until an administrator evicts it; only a lost answer is given again."""
    async with running_server(node_attestors=attestors(issuer, tmp_path, agent_path_template=TEMPLATE)) as server:
        token, csr = issuer.token(), make_csr()
        first = await come(server, token, csr)
        assert await come(server, token, csr) == first
        with refused(grpc.StatusCode.PERMISSION_DENIED, reason="AGENT_ALREADY_ATTESTED"):
            await come(server, issuer.token())
        await server.local.agents.DeleteAgent(server_agent_pb2.DeleteAgentRequest(id=spiffe_id(first)))
        assert await come(server, issuer.token()) == first


async def test_where_nodes_attest_again_another_token_does(issuer: OidcIssuer, tmp_path: Path) -> None:
    again = attestors(issuer, tmp_path, agent_path_template=TEMPLATE, reattest=True)
    async with running_server(node_attestors=again) as server:
        assert await come(server, issuer.token()) == await come(server, issuer.token())
