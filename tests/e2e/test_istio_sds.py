"""Real Envoys configured as Istio's bootstrap configures its sidecars, fed by our agent in place of pilot-agent.

The socket has Istio's name, the secrets are `default` and `ROOTCA`, peers are matched as Istio's control plane does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ca.up.envoy_config import INBOUND, OUTBOUND, Peering, inbound, outbound
from tests.support.envoys import Envoy
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

pytestmark = [pytest.mark.real("envoy"), pytest.mark.xdist_group("envoy")]

SOCKET = "workload-spiffe-uds/socket"
PREFIX = {"match_subject_alt_names": [{"prefix": f"spiffe://{TRUST_DOMAIN}/"}]}


def account(name: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/{name}"


def as_istio(config: dict[str, Any], peers: dict[str, Any]) -> dict[str, Any]:
    """The same proxy with Istio's cluster, secret names, options and peer match."""
    text = json.dumps(config).replace('"burgee_agent"', '"sds-grpc"')
    made: dict[str, Any] = json.loads(text)
    for tls in _found(made, "common_tls_context"):
        (own,) = tls["tls_certificate_sds_secret_configs"]
        own["name"] = "default"
        trust = tls["combined_validation_context"]
        trust["validation_context_sds_secret_config"]["name"] = "ROOTCA"
        trust["default_validation_context"] = peers
    for source in _found(made, "api_config_source"):
        source["set_node_on_first_message_only"] = True
    return made


def _found(value: Any, key: str) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from _found(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _found(inner, key)


class Sidecars:
    """web's sidecar ══ mTLS ══► api's sidecar, which answers itself."""

    def __init__(self, nodes: Pair) -> None:
        self.pair = nodes
        self.envoys = {name: Envoy(name, nodes.home / name) for name in ("web", "api", "other")}
        for name, envoy in self.envoys.items():
            nodes.create_entry(f"/ns/shop/sa/{name}", envoy.selector, x509_svid_ttl=60)
        before = inbound(self._peering("api"), nodes.home / "nobody.sock")
        for route in _found(before, "route"):
            route.pop("cluster")
        for (route,) in _found(before, "routes"):
            route |= {"direct_response": {"status": 200}}
            del route["route"]
        self.envoys["api"].start(as_istio(before, PREFIX))
        self.port = self.envoys["api"].port(INBOUND)

    def call(self, client: str, server: str) -> httpx.Response:
        """From the sidecar of `client`, started anew, which expects the service account `server` at api's."""
        envoy = self.envoys[client]
        envoy.stop()
        config = outbound(self._peering(client), self.port)
        envoy.start(as_istio(config, {"match_subject_alt_names": [{"exact": account(server)}]}))
        return httpx.get(f"http://127.0.0.1:{envoy.port(OUTBOUND)}/", timeout=10)

    def _peering(self, name: str) -> Peering:
        return Peering(
            name=f"sidecar~10.0.0.1~{name}-1.shop~shop.svc.cluster.local",
            own_id="",
            peer_id="",
            trust_domain_id="",
            workload_socket=self.pair.workload_socket,
            admin_socket=self.envoys[name].admin_socket,
        )

    def close(self) -> None:
        for envoy in self.envoys.values():
            envoy.stop()


@pytest.fixture(scope="module")
def sidecars() -> Iterator[Sidecars]:
    with pair() as nodes:
        nodes.stop("agent")
        nodes.workload_socket = nodes.home / SOCKET
        nodes.start_agent()
        made = Sidecars(nodes)
        try:
            yield made
        finally:
            made.close()


def test_sidecars_speak_mutual_tls_as_service_accounts(sidecars: Sidecars) -> None:
    answer = until("a request passes", lambda: _ok(sidecars.call("web", "api")))
    assert answer.headers["x-demo-client"] == account("web")
    assert answer.headers["x-demo-server"] == account("api")
    for name in ("web", "api"):
        until(f"{name} has taken both", lambda name=name: _taken(sidecars, name) == {"default", "ROOTCA"})


def test_a_server_that_is_another_service_account_is_not_spoken_to(sidecars: Sidecars) -> None:
    assert sidecars.call("other", "web").status_code == 503


def _taken(sidecars: Sidecars, name: str) -> set[str]:
    """Which secrets a sidecar has accepted; Envoy opens a stream for each."""
    streams = [client for client in sidecars.pair.sds_clients() if f"~{name}-1." in client.node_id]
    return {r.name for client in streams for r in client.resources if r.state == "ACKED"}


def _ok(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 200 else None
