"""An agent that was evicted by mistake: its workloads go on with what they have, and it says what it needs."""

from __future__ import annotations

import grpc
import httpx
from cryptography import x509

from ca.proto.burgee import workload_pb2 as wl
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc
from tests.support.pair import Pair, free_port, pair, until


def serial(nodes: Pair) -> int:
    """Of this test's X.509-SVID."""
    options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix:{nodes.workload_socket}", options=options) as channel:
        fetch = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID", response_deserializer=wl.X509SVIDResponse.FromString
        )
        call = fetch(b"", metadata=(("workload.spiffe.io", "true"),), timeout=10)
        chain = next(call).svids[0].x509_svid
        call.cancel()
    return x509.load_der_x509_certificate(chain[: 4 + int.from_bytes(chain[2:4], "big")]).serial_number


def test_what_is_valid_is_served_and_a_new_token_heals_without_a_restart() -> None:
    port = free_port()
    with pair(agent={"metrics_address": f"127.0.0.1:{port}"}) as nodes:
        nodes.create_entry("/w")
        before, process = serial(nodes), nodes.pid("agent")
        with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
            request = server_agent_pb2.DeleteAgentRequest(id=nodes._id(nodes.agent_path()))
            server_agent_pb2_grpc.AgentStub(channel).DeleteAgent(request, timeout=5)
        until("it is told", lambda: nodes.status().reason == "AGENT_NOT_ATTESTED")
        assert nodes.status().state == "DEGRADED"
        assert serial(nodes) == before
        assert httpx.get(f"http://127.0.0.1:{port}/ready", timeout=10).status_code == 200
        assert "AGENT_NOT_ATTESTED" in (nodes.home / "agent.log").read_text()
        (nodes.home / "token").write_text(nodes.create_token())
        until("the agent is OK", lambda: nodes.status().state == "OK", seconds=30)
        assert nodes.pid("agent") == process
