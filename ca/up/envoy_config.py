"""The demo Envoys' bootstrap configurations, as plain dictionaries (Envoy reads YAML, of which JSON is a part).

web ──plaintext, loopback──► web's Envoy ══mTLS══► api's Envoy ──Unix socket──► the api application. Beside that way,
web's Envoy has another to api's, through a gateway. Certificates and trust bundles come from the agent's socket alone.
Who calls names the one SPIFFE ID it accepts on the other side; so does who is called, unless policies say who may call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

LOOPBACK = "127.0.0.1"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

INBOUND = "inbound"
OUTBOUND = "outbound"
THROUGH_GATEWAY = "through-gateway"
AGENT = "burgee_agent"
"""The cluster."""
_OPEN: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Peering:
    """What one Envoy is and whom it talks to. IDs are `spiffe://…` texts."""

    name: str
    own_id: str
    peer_id: str
    trust_domain_id: str
    workload_socket: Path
    admin_socket: Path


def inbound(peering: Peering, application: Path, policy: Mapping[str, Any] = _OPEN) -> dict[str, Any]:
    """Envoy before a service: mTLS on a free loopback port, then the application's Unix socket.

    Says in a response header which identity it saw, so that the proof is Envoy's word and not the application's.
    `policy` are parts of the connection manager that decide who may do what.
    """
    cluster = {"name": "application", "type": "STATIC", "load_assignment": _endpoint("application", _pipe(application))}
    return _bootstrap(peering, [_inner("application", peering, policy)], [cluster])


def gateway(peering: Peering, port: int, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Envoy between the two: mTLS on a free loopback port, then mTLS of its own to the peer at `port`."""
    return _bootstrap(peering, [_inner("peer", peering, policy)], [_peer("peer", peering, port)])


def outbound(peering: Peering, port: int, through: tuple[Peering, int] | None = None) -> dict[str, Any]:
    """Envoy behind a client: plaintext on a free loopback port, then mTLS to `port`; likewise `through` a gateway."""
    listeners, clusters = [_outer(OUTBOUND, "peer")], [_peer("peer", peering, port)]
    if through is not None:
        listeners.append(_outer(THROUGH_GATEWAY, "gateway"))
        clusters.append(_peer("gateway", *through))
    return _bootstrap(peering, listeners, clusters)


def _inner(cluster: str, peering: Peering, policy: Mapping[str, Any]) -> dict[str, Any]:
    tls = {
        "@type": TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _tls(peering, "" if policy else peering.peer_id),
    }
    headers = {"x-demo-client": "%DOWNSTREAM_PEER_URI_SAN%", "x-demo-tls": "%DOWNSTREAM_TLS_VERSION%"}
    manager = _http(
        cluster,
        headers,
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
        **policy,
    )
    return _listener(INBOUND, manager, transport_socket={"name": "envoy.transport_sockets.tls", "typed_config": tls})


def _outer(listener: str, cluster: str) -> dict[str, Any]:
    return _listener(listener, _http(cluster, {"x-demo-server": "%UPSTREAM_PEER_URI_SAN%"}))


def _peer(name: str, peering: Peering, port: int) -> dict[str, Any]:
    """A connection lives 10 s at most: it would otherwise outlive the certificate that opened it."""
    tls = {"@type": TLS + "UpstreamTlsContext", "common_tls_context": _tls(peering, peering.peer_id)}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": _endpoint(name, _tcp(port)),
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "typed_extension_protocol_options": _http2(max_connection_duration="10s"),
    }


def _tls(peering: Peering, peer_id: str) -> dict[str, Any]:
    """Of the trust domain's members the one with `peer_id`, or each of them if that is empty."""
    names = [{"san_type": "URI", "matcher": {"exact": peer_id}}] if peer_id else []
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [_secret(peering.own_id)],
        "combined_validation_context": {
            # The bundle proves that the peer belongs to the trust domain; this line says which member it must be.
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": _secret(peering.trust_domain_id),
        },
    }


def _secret(name: str) -> dict[str, Any]:
    source = {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",  # wait for ever rather than open a listener that has no certificate
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": AGENT}}],
        },
    }
    return {"name": name, "sds_config": source}


def _bootstrap(peering: Peering, listeners: list[dict[str, Any]], clusters: list[dict[str, Any]]) -> dict[str, Any]:
    agent = {
        "name": AGENT,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": _endpoint(AGENT, _pipe(peering.workload_socket)),
        "typed_extension_protocol_options": _http2(),
    }
    return {
        "node": {"id": peering.name, "cluster": "burgee-demo"},
        "admin": {"address": _pipe(peering.admin_socket, mode=0o600)},
        "static_resources": {"listeners": listeners, "clusters": [agent, *clusters]},
    }


def _listener(name: str, http: dict[str, Any], **chain: Any) -> dict[str, Any]:
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]
    return {"name": name, "address": _tcp(0), "filter_chains": [{"filters": filters, **chain}]}


def _http(
    cluster: str, headers: dict[str, str], *, http_filters: Sequence[dict[str, Any]] = (), **more: Any
) -> dict[str, Any]:
    added = [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]
    host = {"name": cluster, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
    return {
        "@type": HTTP,
        "stat_prefix": cluster,
        "route_config": {"virtual_hosts": [host], "response_headers_to_add": added},
        "http_filters": [*http_filters, {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        **more,
    }


def _http2(**common: Any) -> dict[str, Any]:
    options = {
        "@type": "type.googleapis.com/" + HTTP_OPTIONS,
        "explicit_http_config": {"http2_protocol_options": {}},
        **({"common_http_protocol_options": common} if common else {}),
    }
    return {HTTP_OPTIONS: options}


def _endpoint(cluster: str, address: dict[str, Any]) -> dict[str, Any]:
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def _tcp(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def _pipe(path: Path, **more: Any) -> dict[str, Any]:
    return {"pipe": {"path": str(path), **more}}
