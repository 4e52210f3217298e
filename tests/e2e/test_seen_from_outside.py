"""What Prometheus reads of a server and an agent at work: the numbers are there, and they are true."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import httpx
import pytest
from cryptography import x509

from tests.support.pair import Pair, free_port, pair, until
from tests.support.workload_client import WorkloadClient

PORTS: dict[str, int] = {}
"""Where each of the two serves its metrics."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    """Both with metrics; one entry for whoever runs this test."""
    PORTS.update({name: free_port() for name in ("server", "agent")})
    server, agent = ({"metrics_address": f"127.0.0.1:{PORTS[name]}"} for name in ("server", "agent"))
    with pair(server=server, agent=agent) as running:
        running.create_entry("/w", x509_svid_ttl=600)
        until("its SVID is here", lambda: running.status().x509_svids == 1)
        yield running


def metrics(of: str) -> dict[str, float]:
    """Samples as they are written, labels included."""
    text = httpx.get(f"http://127.0.0.1:{PORTS[of]}/metrics").text
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_the_server_tells_what_it_issued_and_refused_and_when_things_end(nodes: Pair) -> None:
    seen = metrics("server")
    assert seen['burgee_issued_total{kind="x509"}'] >= 3  # its own, the agent's, the workload's
    (root,) = x509.load_pem_x509_certificates(nodes.bundle_file.read_bytes())
    assert seen['burgee_authority_not_after_seconds{kind="x509"}'] == root.not_valid_after_utc.timestamp()
    assert seen['burgee_authority_not_after_seconds{kind="jwt"}'] > time.time() + 3600
    assert time.time() + 3000 < seen["burgee_server_svid_not_after_seconds"] < time.time() + 3700
    assert seen['burgee_rpc_streams{method="/burgee.node.v1.Node/Sync"}'] == 1
    assert seen["burgee_connected_agents"] == 1
    assert seen['burgee_gate_connections{listener="tcp"}'] >= 1
    assert 0 <= seen["burgee_sync_lag_seconds"] < 30


def test_the_server_counts_refusals_by_reason(nodes: Pair) -> None:
    method = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries"
    with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(method)(b"", timeout=10)
    assert metrics("server")[f'burgee_rpc_refused_total{{method="{method}",reason="TIER"}}'] == 1


async def test_the_agent_tells_what_it_holds_who_listens_and_how_old_its_word_is(nodes: Pair) -> None:
    async with WorkloadClient(str(nodes.workload_socket)) as client:
        stream, sds = client.x509_svids(), client.sds()
        (svid,) = (await stream.read()).svids
        await sds.ask("default")
        await sds.read()
        seen = metrics("agent")
        leaf = x509.load_der_x509_certificate(svid.x509_svid)
        assert seen["burgee_agent_workload_svid_not_after_seconds"] == leaf.not_valid_after_utc.timestamp()
        assert time.time() + 3000 < seen["burgee_agent_svid_not_after_seconds"] < time.time() + 3700
        assert seen['burgee_agent_workload_streams{rpc="FetchX509SVID"}'] == 1
        assert seen["burgee_agent_sds_streams"] == 1
        assert seen['burgee_gate_connections{listener="workload"}'] == 1
        assert time.time() - 60 < seen["burgee_agent_last_sync_timestamp_seconds"] <= time.time()
        assert seen["burgee_agent_connected"] == 1
        stream.cancel()
        sds.call.cancel()
    until("they are gone", lambda: metrics("agent")['burgee_agent_workload_streams{rpc="FetchX509SVID"}'] == 0)


async def test_the_agent_counts_refusals_by_reason(nodes: Pair) -> None:
    async with WorkloadClient(str(nodes.workload_socket)) as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.x509_svids(metadata=()).read()
    name = 'burgee_rpc_refused_total{method="/SpiffeWorkloadAPI/FetchX509SVID",reason="SECURITY_HEADER_MISSING"}'
    assert metrics("agent")[name] == 1


def test_expiry_is_an_absolute_time_in_every_name_that_has_one(nodes: Pair) -> None:
    for program in PORTS:
        ends = {name for name in metrics(program) if "not_after" in name}
        assert ends
        assert all(name.partition("{")[0].endswith("_not_after_seconds") for name in ends)
