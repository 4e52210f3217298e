"""grpcurl knows nothing of us but what reflection tells: it lists, describes and calls."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.programs import go_program
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

pytestmark = pytest.mark.xdist_group("grpcurl")

REFLECTION = {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
WORKLOAD_SERVICES = {
    "SpiffeWorkloadAPI",
    "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
    "envoy.service.secret.v3.SecretDiscoveryService",
    "grpc.health.v1.Health",
} | REFLECTION
SERVER_SERVICES = {
    "grpc.health.v1.Health",
    "spire.api.server.agent.v1.Agent",
    "spire.api.server.bundle.v1.Bundle",
    "spire.api.server.debug.v1.Debug",
    "spire.api.server.entry.v1.Entry",
    "spire.api.server.localauthority.v1.LocalAuthority",
    "spire.api.server.logger.v1.Logger",
    "spire.api.server.svid.v1.SVID",
    "spire.api.server.trustdomain.v1.TrustDomain",
} | REFLECTION


def grpcurl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([go_program("grpcurl"), *words], capture_output=True, text=True, timeout=30)


def local(socket: Path, *words: str, options: tuple[str, ...] = ()) -> str:
    done = grpcurl("-plaintext", "-unix", *options, socket, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(socket: Path, method: str, request: Any, *, header: bool = False) -> Any:
    options = ("-d", json.dumps(request), *(("-H", "workload.spiffe.io: true") if header else ()))
    return json.loads(local(socket, method, options=options))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    go_program("grpcurl")
    with pair() as running:
        running.create_entry("/curl")
        yield running


def test_the_workload_socket_lists_its_services(nodes: Pair) -> None:
    assert set(local(nodes.workload_socket, "list").split()) == WORKLOAD_SERVICES


def test_the_workload_api_is_described_under_its_own_names(nodes: Pair) -> None:
    described = local(nodes.workload_socket, "describe", "SpiffeWorkloadAPI")
    assert "rpc FetchX509SVID ( .X509SVIDRequest ) returns ( stream .X509SVIDResponse );" in described
    message = local(nodes.workload_socket, "describe", "X509SVID")
    for line in ("string spiffe_id = 1;", "bytes x509_svid = 2;", "bytes x509_svid_key = 3;", "bytes bundle = 4;"):
        assert line in message
    sds = local(nodes.workload_socket, "describe", "envoy.service.secret.v3.SecretDiscoveryService")
    assert "rpc StreamSecrets" in sds
    assert "rpc DeltaSecrets" in sds


def test_the_workload_api_is_called(nodes: Pair) -> None:
    def token() -> Any:
        return call(nodes.workload_socket, "SpiffeWorkloadAPI/FetchJWTSVID", {"audience": ["a"]}, header=True)

    (svid,) = until("a token", token)["svids"]
    assert svid["spiffeId"] == f"spiffe://{TRUST_DOMAIN}/curl"
    request = {"audience": "a", "svid": svid["svid"]}
    valid = call(nodes.workload_socket, "SpiffeWorkloadAPI/ValidateJWTSVID", request, header=True)
    assert valid["spiffeId"] == svid["spiffeId"]


def test_the_workload_api_wants_its_header(nodes: Pair) -> None:
    done = grpcurl("-plaintext", "-unix", nodes.workload_socket, "SpiffeWorkloadAPI/FetchX509SVID")
    assert "InvalidArgument" in done.stderr


def test_a_stream_is_read(nodes: Pair) -> None:
    method = "SpiffeWorkloadAPI/FetchX509Bundles"
    words = ("-plaintext", "-unix", "-max-time", "3", "-H", "workload.spiffe.io: true", nodes.workload_socket, method)
    done = grpcurl(*words)
    assert list(json.loads(done.stdout)["bundles"]) == [f"spiffe://{TRUST_DOMAIN}"]
    assert "DeadlineExceeded" in done.stderr


def test_secrets_are_fetched(nodes: Pair) -> None:
    method = "envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets"
    answer = call(nodes.workload_socket, method, {"resourceNames": ["default", "ROOTCA"]})
    assert sorted(resource["name"] for resource in answer["resources"]) == ["ROOTCA", "default"]


def test_health_of_the_agent(nodes: Pair) -> None:
    assert call(nodes.workload_socket, "grpc.health.v1.Health/Check", {}) == {"status": "SERVING"}


def test_the_admin_socket_lists_its_services(nodes: Pair) -> None:
    assert SERVER_SERVICES - set(local(nodes.admin_socket, "list").split()) == set()


def test_the_server_describes_what_it_lists(nodes: Pair) -> None:
    for service in local(nodes.admin_socket, "list").split():
        assert f"{service} is a service" in local(nodes.admin_socket, "describe", service)
    assert "revision_number = 11;" in local(nodes.admin_socket, "describe", "spire.api.types.Entry")


def test_the_server_is_administered(nodes: Pair) -> None:
    assert call(nodes.admin_socket, "spire.api.server.agent.v1.Agent/CountAgents", {}) == {"count": 1}
    listed = call(nodes.admin_socket, "spire.api.server.entry.v1.Entry/ListEntries", {"outputMask": {"spiffeId": True}})
    assert [entry["spiffeId"]["path"] for entry in listed["entries"]] == ["/curl"]
    assert call(nodes.admin_socket, "grpc.health.v1.Health/Check", {}) == {"status": "SERVING"}


def test_the_network_sees_no_reflection(nodes: Pair) -> None:
    done = grpcurl("-insecure", f"127.0.0.1:{nodes.port}", "list")
    assert "does not support the reflection API" in done.stderr
