"""A node whose platform gives it OIDC tokens: it waits for one, attests by it, serves, and needs no second one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.cli.workload import workload_client
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer
from tests.support.pair import TRUST_DOMAIN, Pair, until


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with OidcIssuer() as running:
        yield running


@pytest.fixture
def node(issuer: OidcIssuer) -> Iterator[Pair]:
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    forge = {"issuer": issuer.url, "audience": AUDIENCE, "ca_file": str(issuer.ca_file(home))}
    made = Pair(
        home,
        server={"node_attestors": {"oidc": {"issuers": {"forge": forge}}}},
        agent={"node_attestor": {"oidc": {"token_file": str(home / "token")}}},
    )
    try:
        made.start_server()
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def served(node: Pair) -> set[str]:
    with workload_client(f"unix://{node.workload_socket}") as client:
        return {svid.spiffe_id for svid in client.fetch_x509_once(10).svids}


def test_an_agent_by_a_token_of_its_platform(node: Pair, issuer: OidcIssuer) -> None:
    node.launch("agent")
    until("it says what it lacks", lambda: "OIDC_TOKEN_MISSING" in (node.home / "agent.log").read_text())
    (node.home / "token").write_text(issuer.token(aud="somebody-else"))
    refused = "the token proves nothing here"
    until("it says that it was refused", lambda: refused in (node.home / "agent.log").read_text(), seconds=60)
    assert "somebody-else" not in (node.home / "agent.log").read_text()
    assert "somebody-else" in (node.home / "server.log").read_text(), "administrators see which claim it was"
    (node.home / "token").write_text(issuer.token())
    until("the agent is OK", lambda: node.status().state == "OK", seconds=60)
    path = node.agent_path()
    assert path.startswith("/spire/agent/oidc/forge/")
    node.create_entry("/web")
    until("its workload has its SVID", lambda: served(node) == {f"spiffe://{TRUST_DOMAIN}/web"})
    node.stop("agent")
    node.start_agent(token=False)  # the token has been used up, and is not needed
    assert node.agent_path() == path
