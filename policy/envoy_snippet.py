"""What stands in a proxy's configuration so that policies reach it: refused until they come, asked, logged.

Everything goes to the agent's socket through one cluster. The parts are messages, so that a test holds them to Envoy's
definition; `http_snippet` is what a person copies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.config.core.v3.config_source_pb2 import ApiConfigSource, ApiVersion, ConfigSource, ExtensionConfigSource
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.extensions.access_loggers.grpc.v3.als_pb2 import HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig
from envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2 import ExtAuthz
from envoy.extensions.filters.http.header_mutation.v3.header_mutation_pb2 import HeaderMutation
from envoy.extensions.filters.network.ext_authz.v3.ext_authz_pb2 import ExtAuthz as NetworkExtAuthz
from envoy.type.matcher.v3.metadata_pb2 import MetadataMatcher
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from policy.envoy import (
    ASK,
    HTTP_MARK,
    HTTP_METADATA,
    NETWORK_MARK,
    NETWORK_METADATA,
    Proxy,
    deny_all,
    deny_all_connections,
)
from policy.envoy_chain import CHAIN
from policy.envoy_names import Resource
from policy.envoy_predicates import JWT_FILTER
from policy.envoy_verified import VERIFIED
from policy.ext_authz_wire import DECISION_HEADER, LEFT, REMOTE_IP, TARGET, TOKENS

REQUEST_ID = "x-request-id"
ORIGINAL_PATH = "x-envoy-original-path"
"""Which path was asked for, where the route rewrote it; Envoy's log has it, whoever wrote it."""
LOG_NAME = "burgee"
"""Of the access log, before a slash and the proxy's prefix."""
_TYPES = "type.googleapis.com/"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def any_of(message: Message) -> AnyMessage:
    """A message with its type."""
    found = AnyMessage()
    found.Pack(message, deterministic=True)
    return found


def _agent(cluster: str, said: Mapping[str, str] = MappingProxyType({})) -> GrpcService:
    """The agent, with what is said in each call's metadata."""
    found = GrpcService(envoy_grpc=GrpcService.EnvoyGrpc(cluster_name=cluster))
    for name, value in said.items():
        found.initial_metadata.add(key=name, value=value)
    return found


def _said(prefix: str, spiffe_id: str, *, jwt: bool, metadata: Sequence[str] = ()) -> dict[str, str]:
    """What a check does not have in its message. The stream's id is the request's own, `x-request-id`, in HTTP."""
    _check_prefix(prefix)
    found = {REMOTE_IP: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}
    if prefix:
        found[DECISION_HEADER] = f"{prefix}-%STREAM_ID%"
    if jwt:
        found[TOKENS] = str(Resource(protocol="http", proxy=Proxy(jwt=True)))
    if metadata:
        found[LEFT] = ",".join(metadata)
    if spiffe_id:
        found[TARGET] = spiffe_id
    return found


def _check_prefix(prefix: str) -> None:
    """Raises ValueError. It becomes part of headers, formats and files."""
    if not re.fullmatch(r"(?:[a-z0-9][a-z0-9-]{0,30}[a-z0-9]|[a-z0-9]|)", prefix):
        raise ValueError("a prefix has at most 32 lower-case letters, digits and dashes")


def _mark(filter_name: str, key: str) -> MetadataMatcher:
    found = MetadataMatcher(filter=filter_name)
    found.path.add(key=key)
    found.value.string_match.exact = ASK
    return found


def ask_filter(
    cluster: str,
    *,
    milliseconds: int = 500,
    prefix: str = "",
    spiffe_id: str = "",
    jwt: bool = False,
    metadata: Sequence[str] = (),
    marked: bool = True,
) -> AnyMessage:
    """Asks about marked requests alone (else about all); no answer, or a late one, is a refusal.

    `jwt`: what is pushed verifies tokens. `metadata` are other filters that rules look at.
    """
    service = _agent(cluster, _said(prefix, spiffe_id, jwt=jwt, metadata=metadata))
    service.timeout.FromMilliseconds(milliseconds)
    found = ExtAuthz(
        grpc_service=service,
        transport_api_version=ApiVersion.V3,
        include_peer_certificate=True,
        include_tls_session=True,
        filter_enabled_metadata=_mark(HTTP_METADATA, HTTP_MARK) if marked else None,
        metadata_context_namespaces=[JWT_FILTER, *([VERIFIED] if jwt else []), *metadata],
        failure_mode_allow=False,
        stat_prefix="burgee",
    )
    found.status_on_error.code = 403
    return any_of(found)


def ask_network_filter(
    cluster: str, *, milliseconds: int = 500, prefix: str = "", spiffe_id: str = "", marked: bool = True
) -> AnyMessage:
    """The same for connections."""
    service = _agent(cluster, _said(prefix, spiffe_id, jwt=False))
    service.timeout.FromMilliseconds(milliseconds)
    return any_of(
        NetworkExtAuthz(
            stat_prefix="burgee",
            grpc_service=service,
            transport_api_version=ApiVersion.V3,
            include_peer_certificate=True,
            include_tls_session=True,
            filter_enabled_metadata=_mark(NETWORK_METADATA, NETWORK_MARK) if marked else None,
            failure_mode_allow=False,
        )
    )


def discovered(cluster: str, default: Message, *more: str) -> ExtensionConfigSource:
    """A filter's configuration from the agent, of the default's type or one of `more`. Until there is one, `default`
    holds, at once."""
    api = ApiConfigSource(
        api_type=ApiConfigSource.DELTA_GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[_agent(cluster)],
        set_node_on_first_message_only=True,
    )
    return ExtensionConfigSource(
        config_source=ConfigSource(api_config_source=api, resource_api_version=ApiVersion.V3),
        default_config=any_of(default),
        apply_default_config_without_warming=True,
        type_urls=[f"{_TYPES}{default.DESCRIPTOR.full_name}", *more],
    )


def _discovered(resource: Resource, cluster: str, default: Message, *more: str) -> dict[str, Any]:
    return {"name": str(resource), "config_discovery": _plain(discovered(cluster, default, *more))}


def http_filters(proxy: Proxy, cluster: str, *, prefix: str = "", spiffe_id: str = "") -> list[dict[str, Any]]:
    """What stands before the router, in this order."""
    name = Resource(protocol="http", proxy=proxy, spiffe_id=spiffe_id)
    filters = [_discovered(name, cluster, deny_all(), *([CHAIN] if proxy.jwt else []))]
    if proxy.ext_authz:
        ask = ask_filter(cluster, prefix=prefix, spiffe_id=spiffe_id, jwt=proxy.jwt)
        filters.append({"name": "burgee.http.ask", "typed_config": _plain(ask)})
    return filters


def network_filters(proxy: Proxy, cluster: str, *, prefix: str = "", spiffe_id: str = "") -> list[dict[str, Any]]:
    """What stands before `tcp_proxy`, in this order."""
    name = Resource(protocol="tcp", proxy=proxy, spiffe_id=spiffe_id)
    filters = [_discovered(name, cluster, deny_all_connections())]
    if proxy.ext_authz:
        ask = ask_network_filter(cluster, prefix=prefix, spiffe_id=spiffe_id)
        filters.append({"name": "burgee.tcp.ask", "typed_config": _plain(ask)})
    return filters


def http_snippet(proxy: Proxy, cluster: str, socket: str, *, prefix: str, spiffe_id: str = "") -> dict[str, Any]:
    """Parts of an HttpConnectionManager and the cluster they need. `prefix` tells this proxy's decisions from others'.

    The request's id is Envoy's own: what a client sent is taken away before one is made. Whatever is answered names its
    decision.
    """
    decision = f"{prefix}-%REQ({REQUEST_ID})%"
    return {
        "http_connection_manager": {
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "generate_request_id": True,
            "always_set_request_id_in_response": True,
            "early_header_mutation_extensions": [_without_what_envoy_says()],
            "http_filters": [
                _tells(decision),
                *http_filters(proxy, cluster, prefix=prefix, spiffe_id=spiffe_id),
            ],
            "access_log": [_logged(cluster, prefix, spiffe_id, http=True)],
            "local_reply_config": {"mappers": [_told(decision)]},
        },
        "clusters": [agent_cluster(cluster, socket)],
    }


def network_snippet(
    proxy: Proxy, cluster: str, socket: str, *, prefix: str, spiffe_id: str = "", connection_seconds: int = 0
) -> dict[str, Any]:
    """Filters before a TcpProxy, its access log, what else it needs, and the cluster of all that.

    A connection keeps the policies that it was opened under; with `connection_seconds` it does not last longer.
    """
    lasting = {"max_downstream_connection_duration": f"{connection_seconds}s"} if connection_seconds else {}
    return {
        "tcp_proxy": lasting,
        "filters": network_filters(proxy, cluster, prefix=prefix, spiffe_id=spiffe_id),
        "access_log": [_logged(cluster, prefix, spiffe_id, http=False)],
        "clusters": [agent_cluster(cluster, socket)],
    }


def agent_cluster(name: str, socket: str) -> dict[str, Any]:
    """The agent's socket as a cluster that speaks HTTP/2."""
    endpoint = {"endpoint": {"address": {"pipe": {"path": socket}}}}
    options = {"@type": f"{_TYPES}{_HTTP_OPTIONS}", "explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {_HTTP_OPTIONS: options},
    }


def _plain(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _without_what_envoy_says() -> dict[str, Any]:
    """Neither a decision's id nor the path in the log is what a client says it is."""
    kind = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return {
        "name": "burgee.own-request-id",
        "typed_config": {"@type": f"{_TYPES}{kind}", "mutations": [{"remove": REQUEST_ID}, {"remove": ORIGINAL_PATH}]},
    }


def _tells(decision: str) -> dict[str, Any]:
    """Every response has its decision's id: what was allowed, too, and whatever the upstream wrote there."""
    found = HeaderMutation()
    one = found.mutations.response_mutations.add().append
    one.header.key, one.header.value = DECISION_HEADER, decision
    one.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return {"name": "burgee.http.decision", "typed_config": _plain(any_of(found))}


def _logged(cluster: str, prefix: str, spiffe_id: str, *, http: bool) -> dict[str, Any]:
    if not prefix:
        raise ValueError("a proxy's decisions are told from others' by a prefix")
    made = HttpGrpcAccessLogConfig() if http else TcpGrpcAccessLogConfig()
    common = made.common_config
    common.log_name = f"{LOG_NAME}/{prefix}"
    common.transport_api_version = ApiVersion.V3
    common.grpc_service.CopyFrom(_agent(cluster, {TARGET: spiffe_id} if spiffe_id else {}))
    if http:
        made.additional_request_headers_to_log.append(REQUEST_ID)
    return {"name": "burgee.log", "typed_config": _plain(any_of(made))}


def _told(decision: str) -> dict[str, Any]:
    """A refusal, a token's too, tells its decision's id, and nothing else."""
    refused = [
        {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": key}}}}
        for code, key in ((401, "burgee.token_refused"), (403, "burgee.refused"))
    ]
    return {
        "filter": {"or_filter": {"filters": refused}},
        "headers_to_add": [
            {
                "header": {"key": DECISION_HEADER, "value": decision},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",  # who was asked has said it, too
            }
        ],
        "body_format_override": {"json_format": {"error": "refused by policy", "decision": decision}},
    }
