"""All services of the server, put onto one grpc.aio server, and described by reflection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from ca.api.admin import AdminService
from ca.api.agent import AgentService
from ca.api.authorities import AuthoritiesService
from ca.api.bundle import BundleService
from ca.api.debug import DebugService
from ca.api.entry import EntryService
from ca.api.exchange import ExchangeService
from ca.api.foresight import ForesightService
from ca.api.health import HealthService
from ca.api.issuing import IssuingService
from ca.api.local_authority import LocalAuthorityService
from ca.api.logger import LoggerService
from ca.api.node import NodeService
from ca.api.svid import SvidService
from ca.api.trust_domain import TrustDomainService
from ca.proto.burgee import (
    admin_pb2,
    admin_pb2_grpc,
    authority_pb2,
    authority_pb2_grpc,
    debug_pb2,
    debug_pb2_grpc,
    decisions_pb2,
    decisions_pb2_grpc,
    exchange_pb2,
    exchange_pb2_grpc,
    foresight_pb2,
    foresight_pb2_grpc,
    issuing_pb2,
    issuing_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
)
from ca.proto.spire import (
    server_agent_pb2,
    server_agent_pb2_grpc,
    server_bundle_pb2,
    server_bundle_pb2_grpc,
    server_debug_pb2,
    server_debug_pb2_grpc,
    server_entry_pb2,
    server_entry_pb2_grpc,
    server_localauthority_pb2,
    server_localauthority_pb2_grpc,
    server_logger_pb2,
    server_logger_pb2_grpc,
    server_svid_pb2,
    server_svid_pb2_grpc,
    server_trustdomain_pb2,
    server_trustdomain_pb2_grpc,
)
from ca.runtime.debug_report import DebugReport
from ca.runtime.decision_service import DecisionsApi
from ca.runtime.reflection import Reflection, pool_of

_KINDS: dict[type[Any], tuple[Any, Callable[[Any, grpc.aio.Server], None]]] = {
    ForesightService: (foresight_pb2, foresight_pb2_grpc.add_ForesightServicer_to_server),
    AuthoritiesService: (authority_pb2, authority_pb2_grpc.add_AuthoritiesServicer_to_server),
    AdminService: (admin_pb2, admin_pb2_grpc.add_AdminServicer_to_server),
    AgentService: (server_agent_pb2, server_agent_pb2_grpc.add_AgentServicer_to_server),
    BundleService: (server_bundle_pb2, server_bundle_pb2_grpc.add_BundleServicer_to_server),
    DebugReport: (debug_pb2, debug_pb2_grpc.add_DebugServicer_to_server),
    DecisionsApi: (decisions_pb2, decisions_pb2_grpc.add_DecisionsServicer_to_server),
    DebugService: (server_debug_pb2, server_debug_pb2_grpc.add_DebugServicer_to_server),
    EntryService: (server_entry_pb2, server_entry_pb2_grpc.add_EntryServicer_to_server),
    ExchangeService: (exchange_pb2, exchange_pb2_grpc.add_ExchangeServicer_to_server),
    HealthService: (health_pb2, health_pb2_grpc.add_HealthServicer_to_server),
    IssuingService: (issuing_pb2, issuing_pb2_grpc.add_IssuingServicer_to_server),
    LocalAuthorityService: (
        server_localauthority_pb2,
        server_localauthority_pb2_grpc.add_LocalAuthorityServicer_to_server,
    ),
    LoggerService: (server_logger_pb2, server_logger_pb2_grpc.add_LoggerServicer_to_server),
    NodeService: (node_pb2, node_pb2_grpc.add_NodeServicer_to_server),
    SvidService: (server_svid_pb2, server_svid_pb2_grpc.add_SVIDServicer_to_server),
    TrustDomainService: (server_trustdomain_pb2, server_trustdomain_pb2_grpc.add_TrustDomainServicer_to_server),
}
"""For each service its file, which holds no other, and how it is added."""


def register(server: grpc.aio.Server, services: Iterable[object]) -> None:
    """Adds each service under its own name, and reflection of them all."""
    files = []
    for service in services:
        module, add = _KINDS[type(service)]
        add(service, server)
        files.append(module.DESCRIPTOR)

    def describe() -> DescriptorPool:
        return pool_of(files)

    names = [service.full_name for file in files for service in file.services_by_name.values()]
    server.add_generic_rpc_handlers(Reflection(names, describe).handlers())
