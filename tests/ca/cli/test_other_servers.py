"""`caadmin` against stand-ins for what the real server and agent do not show on demand: a NACK, trouble, an old API."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from ca.proto.burgee import admin_pb2, admin_pb2_grpc, agent_pb2, agent_pb2_grpc
from ca.proto.spire import (
    server_bundle_pb2,
    server_bundle_pb2_grpc,
    server_svid_pb2,
    server_svid_pb2_grpc,
    types_pb2,
)
from tests.ca.cli.conftest import Caadmin


class Troubled(admin_pb2_grpc.AdminServicer):
    """A server that is not ready; it mints nothing, as a SPIRE server has no such service."""

    def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Any) -> admin_pb2.Status:
        problem = admin_pb2.Problem(reason="NO_ACTIVE_AUTHORITY", detail="no authority can sign", hint="wait a second")
        return admin_pb2.Status(trust_domain="example.org", ready=False, problems=[problem])

    def MintX509SVID(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown service burgee.admin.v1.Admin")

    MintJWTSVID = MintX509SVID


class SpireSvid(server_svid_pb2_grpc.SVIDServicer):
    """SPIRE's minting."""

    def MintX509SVID(self, request: server_svid_pb2.MintX509SVIDRequest, context: Any) -> Any:
        spiffe_id = types_pb2.SPIFFEID(trust_domain="example.org", path="/m")
        svid = types_pb2.X509SVID(cert_chain=[b"0\x00"], id=spiffe_id, expires_at=1_900_000_000)
        return server_svid_pb2.MintX509SVIDResponse(svid=svid)

    def MintJWTSVID(self, request: server_svid_pb2.MintJWTSVIDRequest, context: Any) -> Any:
        svid = types_pb2.JWTSVID(token=f"a.b.{request.ttl}", id=request.id)
        return server_svid_pb2.MintJWTSVIDResponse(svid=svid)


class SpireBundle(server_bundle_pb2_grpc.BundleServicer):
    """An empty bundle."""

    def GetBundle(self, request: server_bundle_pb2.GetBundleRequest, context: Any) -> types_pb2.Bundle:
        return types_pb2.Bundle(trust_domain="example.org")


class Agent(agent_pb2_grpc.AgentServicer):
    """A degraded agent, one of whose Envoys refused a secret."""

    def GetStatus(self, request: agent_pb2.GetStatusRequest, context: Any) -> agent_pb2.Status:
        return agent_pb2.Status(state="DEGRADED", reason="SERVER_UNREACHABLE", detail="no server answers")

    def ListSdsClients(self, request: Any, context: Any) -> agent_pb2.ListSdsClientsResponse:
        resources = [
            agent_pb2.SdsResource(name="default", state="ACKED", version="7", sent_at=1_900_000_000),
            agent_pb2.SdsResource(name="ROOTCA", state="NACKED", version="7", detail="Failed to load trusted CA"),
        ]
        client = agent_pb2.SdsClient(stream=4, pid=4242, uid=1000, node_id="edge", resources=resources)
        return agent_pb2.ListSdsClientsResponse(clients=[client])


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    server = grpc.server(ThreadPoolExecutor(2))
    admin_pb2_grpc.add_AdminServicer_to_server(Troubled(), server)
    agent_pb2_grpc.add_AgentServicer_to_server(Agent(), server)
    server_svid_pb2_grpc.add_SVIDServicer_to_server(SpireSvid(), server)
    server_bundle_pb2_grpc.add_BundleServicer_to_server(SpireBundle(), server)
    server.add_insecure_port(f"unix:{directory}/s")
    server.start()
    yield directory / "s"
    server.stop(None).wait()
    shutil.rmtree(directory)


def test_a_nack_is_shown_in_envoys_words(caadmin: Caadmin, socket: Path) -> None:
    ran = caadmin("agent", "sds", "--agent-socket", str(socket))
    header, acked, nacked, words = ran.out.splitlines()
    assert header.split() == ["STREAM", "PID", "UID", "NODE", "SECRET", "VERSION", "STATE", "SINCE"]
    assert acked.split()[:7] == ["4", "4242", "1000", "edge", "default", "7", "ACKED"]
    assert "NACKED" in nacked
    assert words == "stream 4 `ROOTCA` NACKED: Failed to load trusted CA"
    data = caadmin("agent", "sds", "--agent-socket", str(socket), "-o", "json").json
    assert data["clients"][0]["resources"][1]["detail"] == "Failed to load trusted CA"


def test_trouble_is_told_with_its_reason_and_hint(caadmin: Caadmin, socket: Path) -> None:
    server = caadmin("health", "--socket", str(socket))
    assert server.code == 1
    assert "NO_ACTIVE_AUTHORITY: no authority can sign" in server.out
    assert "hint: wait a second" in server.out
    agent = caadmin("health", "--agent", "--agent-socket", str(socket))
    assert agent.code == 1
    assert "no server answers (SERVER_UNREACHABLE)" in agent.out
    assert re.search(r"^SVID expires +it has none$", agent.out, re.M)
    assert "First to expire" not in agent.out


def test_a_spire_server_mints_through_its_own_api(caadmin: Caadmin, socket: Path) -> None:
    jwt = caadmin(
        *("svid", "mint", "jwt", "--spiffe-id", "spiffe://example.org/m", "--audience", "a", "--ttl", "90"),
        *("--socket", str(socket)),
    )
    assert (jwt.code, jwt.out) == (0, "a.b.90\n")
    x509 = caadmin("svid", "mint", "x509", "--spiffe-id", "spiffe://example.org/m", "--socket", str(socket))
    assert x509.code == 0
    assert "BEGIN PRIVATE KEY" in x509.out


def test_nobody_there_is_told_with_what_to_do(caadmin: Caadmin) -> None:
    ran = caadmin("entry", "list", "--socket", "/nonexistent/admin.sock")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: no server answers at `/nonexistent/admin.sock` (UNREACHABLE)",
        "hint: start it, or say where it is with --socket or BURGEE_ADMIN_SOCKET",
    ]
    agent = caadmin("agent", "sds", "--agent-socket", "/nonexistent/agent.sock")
    assert "--agent-socket or BURGEE_AGENT_SOCKET" in agent.err
