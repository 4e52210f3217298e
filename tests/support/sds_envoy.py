"""One real Envoy whose listener's secrets come through a relay that a test can cut, as a network or a restart would."""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from pathlib import Path
from typing import Any

from ca.identity.bundle_pem import parse_certificates

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
EXTENSIONS = "type.googleapis.com/envoy.extensions."
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Relay:
    """Passes bytes from one Unix socket to another; `cut` ends every connection there is."""

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(self._target)
        both = {writer, ours}
        self._writers |= both
        try:
            await asyncio.gather(_pass(reader, ours), _pass(theirs, writer))
        finally:
            self._writers -= both


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # cut
    writer.transport.abort()


def listening(workload_socket: Path | str, admin_socket: Path, *, certificate: str, roots: str) -> dict[str, Any]:
    """Bootstrap of an Envoy that answers 200 to every client with a certificate of these roots; listener `inbound`.

    `certificate` and `roots` are names for SDS.
    """
    tls = {
        "@type": TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [_secret(certificate)],
            "validation_context_sds_secret_config": _secret(roots),
        },
    }
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    http = {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "inbound",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}],
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            }
        ],
    }
    return {
        "node": {"id": "events", "cluster": "events"},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "static_resources": {"listeners": [listener], "clusters": [_agent(workload_socket)]},
    }


def chain_of(secret: dict[str, Any]) -> tuple[bytes, ...]:
    """The certificates, DER, of a dumped secret; none when it is another kind of secret."""
    data = secret.get("tls_certificate", {}).get("certificate_chain", {}).get("inline_bytes", "")
    return parse_certificates(base64.b64decode(data)) if data else ()


def roots_of(secret: dict[str, Any]) -> dict[str, tuple[bytes, ...]]:
    """Trust domain → roots, DER, of a dumped secret in the form of the SPIFFE validator."""
    config = secret.get("validation_context", {}).get("custom_validator_config", {}).get("typed_config", {})
    return {
        domain["name"]: parse_certificates(base64.b64decode(domain["trust_bundle"]["inline_bytes"]))
        for domain in config.get("trust_domains", [])
    }


async def handshake(port: int, *, certificate_pem: bytes, key_pem: bytes) -> str:
    """The first line of the answer to a request with this client certificate; empty when Envoy would not have it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate_pem + key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (ssl.SSLError, OSError):
        return ""
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return (await asyncio.wait_for(reader.readline(), 10)).decode().strip()
    except (ssl.SSLError, OSError):  # TLS 1.3 tells a refused client after its handshake
        return ""
    finally:
        writer.transport.abort()


def _secret(name: str) -> dict[str, Any]:
    source = {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
        },
    }
    return {"name": name, "sds_config": source}


def _agent(socket: Path | str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    options = {
        "@type": "type.googleapis.com/" + HTTP_OPTIONS,
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "name": "agent",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {HTTP_OPTIONS: options},
    }
