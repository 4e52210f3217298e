"""One real Envoy that enforces many policies at once: a request's header says which filter it is judged by.

Each caller has one connection for all of its requests, so that thousands of them take seconds.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC, RBACPerRoute
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict, ParseDict

from policy import envoy
from policy.envoy_snippet import agent_cluster, any_of, ask_filter
from tests.support.envoys import Envoy
from tests.support.pair import until
from tests.support.policy_certificates import Authority

EXTENSIONS = "type.googleapis.com/envoy.extensions."
FILTER = "envoy.filters.http.rbac"
CLAIMS, METADATA = "x-test-claims", "x-test-metadata"
"""Headers that become what another filter left, and are gone before policies see them."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as a client sends it. `uris` None: without a certificate."""

    case: str
    uris: tuple[str, ...] | None = None
    method: str = "GET"
    path: str = "/"
    host: str = "svc"
    headers: Mapping[str, str] = field(default_factory=dict)
    source_ip: str = "127.0.0.1"
    sni: str | None = None
    claims: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """What came back: `details` are those of the response, `marks` what the filter left in its metadata."""

    status: int
    details: str
    marks: Mapping[str, Any]

    @property
    def allowed(self) -> bool:
        return self.status == 200

    @property
    def rule(self) -> str:
        """The name of the verdict."""
        return str(self.marks.get("burgee_enforced_effective_policy_id", ""))


def extension(name: str, kind: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": EXTENSIONS + kind, **config}}


def metadata_from(header: str, namespace: str, key: str) -> dict[str, Any]:
    into = {"metadata_namespace": namespace, "key": key, "type": "PROTOBUF_VALUE", "encode": "BASE64"}
    return {"header": header, "on_header_present": into, "remove": True}


def encoded(value: Any) -> str:
    return base64.b64encode(ParseDict(value, struct_pb2.Value()).SerializeToString()).decode()


class PolicyEnvoy:
    """`normalize`: paths are normalized before filters see them. `ask` is the socket of an ext_authz server."""

    shown: ClassVar[Mapping[str, str]] = {
        "x-details": "%RESPONSE_CODE_DETAILS%",
        "x-marks": f"%DYNAMIC_METADATA({FILTER})%",
    }
    """Headers of every answer."""

    def __init__(
        self, directory: Path, *, normalize: bool = False, ask: Path | None = None, before: Sequence[Any] = ()
    ) -> None:
        self.directory, self._ask, self._before = directory, ask, before
        self._normalize, self._version = normalize, 0
        self.envoy = Envoy("policy", directory / "envoy")
        self.authority = Authority(directory)
        self._routes = directory / "routes.pb"
        self.port = 0

    def start(self, cases: Mapping[str, RBAC] | None = None) -> None:
        self._write(cases or {})
        self.envoy.start(self._bootstrap())
        self.port = self.envoy.port("inbound")

    def stop(self) -> None:
        self.envoy.stop()

    def load(self, cases: Mapping[str, RBAC]) -> None:
        """From now on these filters hold, and no others. Raises where Envoy refuses one."""
        updates = "http.inbound.rds.routes.update_"
        before = self.envoy.stats(updates)
        self._write(cases)

        def heard() -> bool:
            now = self.envoy.stats(updates)
            if now[f"{updates}rejected"] > before[f"{updates}rejected"]:
                raise ValueError("Envoy refuses this configuration")
            return now[f"{updates}success"] > before[f"{updates}success"]

        until("Envoy takes the policies", heard)

    def _write(self, cases: Mapping[str, RBAC]) -> None:
        self._version += 1
        routes = RouteConfiguration(name="routes")
        host = routes.virtual_hosts.add(name="all", domains=["*"])
        for case, rbac in cases.items():
            route = host.routes.add(name=case)
            route.match.prefix = "/"
            route.match.headers.add(name="x-case").string_match.exact = case
            route.direct_response.status = 200
            self.configure(route.typed_per_filter_config, rbac)
        response = DiscoveryResponse(version_info=str(self._version), resources=[any_of(routes)])
        beside = self._routes.with_suffix(".new.pb")
        beside.write_bytes(response.SerializeToString())
        os.rename(beside, self._routes)

    def configure(self, filters: Any, rbac: Any) -> None:
        """What a case means for the filters of its route."""
        filters[FILTER].CopyFrom(any_of(RBACPerRoute(rbac=rbac)))

    def ask(self, calls: Sequence[Call]) -> list[Answer]:
        """The answers, in the order of the calls."""
        by_caller: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for number, call in enumerate(calls):
            by_caller[call.uris, call.source_ip, call.sni].append(number)
        answers: dict[int, Answer] = {}
        for (uris, source_ip, sni), numbers in by_caller.items():
            with self.connect(uris, source_ip, sni) as stream, stream.makefile("rb") as reader:
                for number in numbers:
                    stream.sendall(self._bytes(calls[number]))
                    found = read_answer(reader)
                    if found is None or found.status == 400:  # the connection is closed after it
                        raise ValueError(f"no request to Envoy: {calls[number]}")
                    answers[number] = found
        return [answers[n] for n in range(len(calls))]

    def connect(self, uris: tuple[str, ...] | None, source_ip: str = "127.0.0.1", sni: str | None = None) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if uris is not None:
            pair = self.authority.issue(*uris)
            context.load_cert_chain(pair.certificate, pair.key)
        plain = socket.create_connection(("127.0.0.1", self.port), 20, source_address=(source_ip, 0))
        return context.wrap_socket(plain, server_hostname=sni)

    def _bytes(self, call: Call) -> bytes:
        headers = {"host": call.host, "x-case": call.case, **call.headers}
        if call.claims is not None:
            headers[CLAIMS] = encoded(call.claims)
        if call.metadata is not None:
            headers[METADATA] = encoded(call.metadata)
        lines = [f"{call.method} {call.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")

    def _bootstrap(self) -> dict[str, Any]:
        listener = {
            "name": "inbound",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "listener_filters": [extension("tls", "filters.listener.tls_inspector.v3.TlsInspector")],
            "filter_chains": [{"filters": [self._manager()], "transport_socket": server_tls(self.authority)}],
        }
        return {
            "node": {"id": "policy", "cluster": "policy"},
            "admin": {"address": {"pipe": {"path": str(self.envoy.admin_socket), "mode": 0o600}}},
            "static_resources": {
                "listeners": [listener],
                "clusters": [grpc_cluster("ask", self._ask)] if self._ask else [],
            },
        }

    def _manager(self) -> dict[str, Any]:
        left = [
            metadata_from(CLAIMS, "envoy.filters.http.jwt_authn", "payload"),
            metadata_from(METADATA, "test", "key"),
        ]
        asking = ask_filter("ask", milliseconds=20_000)  # other tests may hold up the one who is asked
        filters = [
            *self._before,
            extension("left", "filters.http.header_to_metadata.v3.Config", request_rules=left),
            {"name": FILTER, "typed_config": MessageToDict(any_of(envoy.deny_all()))},
            *([{"name": "ask", "typed_config": MessageToDict(asking)}] if self._ask else []),
            extension("router", "filters.http.router.v3.Router"),
        ]
        every = {"comparison": {"op": "GE", "value": {"default_value": 100, "runtime_key": "none"}}}
        mapper = {
            "filter": {"status_code_filter": every},
            "headers_to_add": [{"header": {"key": k, "value": v}} for k, v in self.shown.items()],
        }
        return extension(
            "http",
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="inbound",
            normalize_path=self._normalize,
            merge_slashes=self._normalize,
            path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD" if self._normalize else "KEEP_UNCHANGED",
            rds={
                "route_config_name": "routes",
                "config_source": {"path_config_source": {"path": str(self._routes)}, "resource_api_version": "V3"},
            },
            local_reply_config={"mappers": [mapper]},
            http_filters=filters,
        )


def server_tls(authority: Authority) -> dict[str, Any]:
    """TLS that takes certificates of the same authority, and callers without one."""
    server = authority.issue("spiffe://td/ns/x/sa/server")
    files = {"certificate_chain": {"filename": str(server.certificate)}, "private_key": {"filename": str(server.key)}}
    return extension(
        "tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=False,
        common_tls_context={
            "tls_certificates": [files],
            "validation_context": {"trusted_ca": {"filename": str(authority.roots)}},
        },
    )


def grpc_cluster(name: str, socket_path: Path) -> dict[str, Any]:
    """A gRPC server on a Unix socket."""
    return agent_cluster(name, str(socket_path))


def read_answer(reader: Any) -> Answer | None:
    """One HTTP/1.1 response with a length; None at the end of a connection."""
    if not (line := reader.readline()):
        return None
    status = int(line.split()[1])
    headers = {}
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    reader.read(int(headers.get("content-length", "0")))
    marks = headers.get("x-marks", "-")
    return Answer(status, headers.get("x-details", ""), json.loads(marks) if marks.startswith("{") else {})
