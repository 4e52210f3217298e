"""A real Envoy, configured with the snippets as a user would, whose policies come from an agent."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

from policy.envoy import Proxy
from policy.envoy_snippet import http_snippet, network_snippet
from tests.support.envoys import Envoy, speaking
from tests.support.policy_certificates import Authority
from tests.support.policy_envoy import Answer, Call, PolicyEnvoy, extension, read_answer, server_tls

CALLER = ("spiffe://example.org/caller",)


class PolicyProxy(PolicyEnvoy):
    """Listener `inbound` for requests and, with `upstream`, a port of this host, `tcp` for connections to there."""

    def __init__(
        self,
        name: str,
        directory: Path,
        socket: Path,
        *,
        beside: Proxy | None = None,
        spiffe_id: str = "",
        upstream: int = 0,
        connection_seconds: int = 0,
        api: str = "DELTA_GRPC",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.name = directory, name
        self.envoy = Envoy(name, directory / "envoy")
        self.authority = Authority(directory)
        self._socket, self._beside, self._spiffe_id = socket, beside or Proxy(), spiffe_id
        self._upstream, self._connection_seconds, self._api = upstream, connection_seconds, api
        self.port = self.tcp_port = 0

    def start(self, cases: Any = None) -> None:
        self.envoy.start(speaking(self._api, self._bootstrap()))
        self.port = self.envoy.port("inbound")
        self.tcp_port = self._tcp_port() if self._upstream else 0

    def get(self, path: str = "/", *, uris: tuple[str, ...] | None = CALLER, **headers: str) -> Answer:
        """One request on a connection of its own."""
        with self.connect(uris) as stream, stream.makefile("rb") as reader:
            stream.sendall(self._bytes(Call(case="", uris=uris, path=path, headers=headers)))
            answer = read_answer(reader)
        assert answer is not None
        return answer

    def status(self, path: str = "/", **more: Any) -> int:
        return self.get(path, **more).status

    def connect_tcp(self) -> ssl.SSLSocket:
        """A connection through the proxy."""
        port, self.port = self.port, self.tcp_port
        try:
            found: ssl.SSLSocket = self.connect(CALLER)
            return found
        finally:
            self.port = port

    def config(self, resource: str) -> Any:
        """What it has for an extension's configuration, as it says."""
        dumped = self.envoy.admin("/config_dump?resource=ecds_filters").get("configs", [])
        return next((c for c in dumped if c.get("ecds_filter", {}).get("name") == resource), None)

    def _tcp_port(self) -> int:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for status in self.envoy.admin("/listeners?format=json").get("listener_statuses", []):
                if status["name"] == "tcp":
                    return int(status["local_address"]["socket_address"]["port_value"])
            time.sleep(0.02)
        raise AssertionError("no listener for connections")

    def _bootstrap(self) -> dict[str, Any]:
        http = http_snippet(self._beside, "agent", str(self._socket), prefix=self.name, spiffe_id=self._spiffe_id)
        router = extension("router", "filters.http.router.v3.Router")
        manager = http["http_connection_manager"]
        route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        inbound = extension(
            "http",
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="inbound",
            route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            **{**manager, "http_filters": [*manager["http_filters"], router]},
        )
        listeners, clusters = [self._listener("inbound", [inbound])], http["clusters"]
        if self._upstream:
            tcp = network_snippet(
                self._beside,
                "agent",
                str(self._socket),
                prefix=self.name,
                spiffe_id=self._spiffe_id,
                connection_seconds=self._connection_seconds,
            )
            kind = "filters.network.tcp_proxy.v3.TcpProxy"
            proxied = extension("t", kind, stat_prefix="t", cluster="up", **tcp["tcp_proxy"])
            listeners.append(self._listener("tcp", [*tcp["filters"], proxied]))
            clusters.append(upstream_cluster(self._upstream))
        return {
            "node": {"id": self.name, "cluster": self.name},
            "admin": {"address": {"pipe": {"path": str(self.envoy.admin_socket), "mode": 0o600}}},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        }

    def _listener(self, name: str, filters: list[Any]) -> dict[str, Any]:
        return {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": filters, "transport_socket": server_tls(self.authority)}],
        }


def upstream_cluster(port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    return {
        "name": "up",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
