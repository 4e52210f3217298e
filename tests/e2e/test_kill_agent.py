"""The agent is killed at every step of an attestation, an issuance and a rotation; then it is started again."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from ca.proto.burgee import admin_pb2, admin_pb2_grpc
from ca.proto.burgee import workload_pb2 as wl
from tests.support.pair import TRUST_DOMAIN, Pair, until

ATTESTATION = (
    "before sds.node_attest:_converse",
    "after sds.node_attest:_converse",
    "before sds.state:AgentStore.save_agent",
    "after sds.state:AgentStore.save_agent",
)
RENEWAL = (
    "after sds.node_attest:NodeCalls.renew",
    "before 2 sds.state:AgentStore.save_agent",  # the first is that of its attestation
    "after 2 sds.state:AgentStore.save_agent",
)
ISSUANCE = (
    "before {} sds.rotation:Rotator._request",
    "after {} sds.node_client:NodeClient.new_x509_svids",
    "after {} sds.rotation:Rotator._take_over",
    "before {} sds.state:AgentStore.save_svids",
    "after {} sds.state:AgentStore.save_svids",
)


class Doomed(Pair):
    """A pair whose agent dies at `step`, once."""

    step = ""

    def _start(self, name: str, module: str, config: dict[str, Any]) -> None:
        if name != "agent":
            super()._start(name, module, config)
            return
        path = self.home / "agent.yaml"
        path.write_text(yaml.safe_dump(config))
        with (self.home / "agent.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.support.dying", "agent", self.step, "--config", str(path)]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def has_died(self) -> None:
        assert self.processes.pop("agent").wait(30) == -signal.SIGKILL

    def is_one(self, path: str) -> None:
        """It is well, as the same node, and nobody else is."""
        until("the agent is OK", lambda: self.status().state == "OK")
        assert self.agent_path() == path
        assert self.count_agents() == 1
        said = (self.home / "agent.log").read_text()
        assert "Traceback" not in said
        assert "SEALED_STATE_IGNORED" not in said
        assert "ATTESTATION_REFUSED" not in said

    def attested(self) -> int:
        """How often the server attested it."""
        return len(re.findall("agent attested", (self.home / "server.log").read_text()))

    def recorded(self) -> list[str]:
        """Serial numbers of all X.509-SVIDs."""
        with self._channel(self.admin_socket) as channel:
            pages = admin_pb2_grpc.AdminStub(channel).ListIssued(admin_pb2.ListIssuedRequest(), timeout=10)
            return [record.serial_or_kid for page in pages for record in page.records if record.kind == "x509"]

    def served(self) -> str:
        """The SPIFFE ID of this test's SVID."""
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{self.workload_socket}", options=options) as channel:
            fetch = channel.unary_stream(
                "/SpiffeWorkloadAPI/FetchX509SVID", response_deserializer=wl.X509SVIDResponse.FromString
            )
            call = fetch(b"", metadata=(("workload.spiffe.io", "true"),), timeout=10)
            svid = next(call).svids[0]
            call.cancel()
        return str(svid.spiffe_id)


@contextmanager
def doomed(step: str, **server: Any) -> Iterator[tuple[Doomed, str]]:
    """The pair, its server up and its token in place, and the path of the node that it will be."""
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    made = Doomed(home, server=server)
    made.step = step
    try:
        made.start_server()
        token = made.create_token()
        (home / "token").write_text(token)
        yield made, f"/spire/agent/join_token/{token}"
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("step", ATTESTATION)
def test_at_each_step_of_an_attestation(step: str) -> None:
    """Its key was sealed before it asked: a token that was used up serves it once more, and no new one is needed."""
    with doomed(step) as (pair, path):
        pair.launch("agent")
        pair.has_died()
        pair.launch("agent")
        pair.is_one(path)
        assert pair.attested() == (2 if step in ATTESTATION[1:3] else 1)
        assert not (pair.home / "agent" / "state" / "attesting.sealed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", RENEWAL)
def test_at_each_step_of_a_renewal(step: str) -> None:
    """It dies at half of its SVID's life; the other half is time for a start on a busy machine."""
    with doomed(step, agent_ttl_seconds=40) as (pair, path):
        pair.launch("agent")
        pair.has_died()
        pair.launch("agent")
        pair.is_one(path)
        pair.create_entry("/w")
        until("it is served", lambda: pair.served() == f"spiffe://{TRUST_DOMAIN}/w")
        assert pair.attested() == 1


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("step", ISSUANCE)
def test_at_each_step_of_an_issuance_and_of_a_rotation(step: str, time: int) -> None:
    """The second time it is the rotation; what was held and valid is served from the start."""
    with doomed(step.format(time)) as (pair, path):
        pair.launch("agent")
        until("the agent is OK", lambda: pair.status().state == "OK")
        pair.create_entry("/w", x509_svid_ttl=10)
        pair.has_died()
        pair.launch("agent")
        pair.is_one(path)
        until("it is served", lambda: pair.served() == f"spiffe://{TRUST_DOMAIN}/w")
        assert pair.attested() == 1
        assert set(Counter(pair.recorded()).values()) == {1}
