"""Somebody removes the file of the agent's workload socket."""

from __future__ import annotations

import os

import grpc
import httpx

from ca.proto.burgee import workload_pb2 as wl
from tests.support.pair import Pair, free_port, pair, until


def fetched(nodes: Pair) -> bool:
    """Whether a new connection is given an SVID."""
    options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix:{nodes.workload_socket}", options=options) as channel:
        fetch = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID", response_deserializer=wl.X509SVIDResponse.FromString
        )
        call = fetch(b"", metadata=(("workload.spiffe.io", "true"),), timeout=5)
        found = bool(next(call).svids)
        call.cancel()
    return found


def test_a_socket_that_is_gone_is_told_and_a_restart_makes_it_anew() -> None:
    port = free_port()

    def ready() -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=10)

    with pair(agent={"metrics_address": f"127.0.0.1:{port}"}) as nodes:
        nodes.create_entry("/w")
        assert fetched(nodes)
        assert ready().status_code == 200
        aside = nodes.workload_socket.with_suffix(".aside")
        nodes.workload_socket.rename(aside)
        until("it is told", lambda: nodes.status().reason == "WORKLOAD_SOCKET_LOST")
        assert nodes.status().state == "DEGRADED"
        assert "was removed" in nodes.status().detail
        assert ready().status_code == 503
        assert [problem["reason"] for problem in ready().json()["problems"]] == ["WORKLOAD_SOCKET_LOST"]
        assert httpx.get(f"http://127.0.0.1:{port}/live", timeout=10).status_code == 200
        assert "WORKLOAD_SOCKET_LOST" in (nodes.home / "agent.log").read_text()
        aside.rename(nodes.workload_socket)
        until("it is well again", lambda: nodes.status().state == "OK")
        assert ready().status_code == 200
        nodes.workload_socket.unlink()
        nodes.workload_socket.touch()
        until("it is told", lambda: "another file" in nodes.status().detail)
        nodes.workload_socket.unlink()
        nodes.stop("agent")
        nodes.start_agent(token=False)
        assert fetched(nodes)
        assert os.path.exists(nodes.workload_socket)
