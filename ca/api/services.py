"""All services of the server, put onto one grpc.aio server."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]

from ca.api.admin import AdminService
from ca.api.agent import AgentService
from ca.api.bundle import BundleService
from ca.api.entry import EntryService
from ca.api.health import HealthService
from ca.api.node import NodeService
from ca.api.svid import SvidService
from ca.proto.burgee import admin_pb2_grpc, debug_pb2_grpc, node_pb2_grpc
from ca.proto.spire import server_agent_pb2_grpc, server_bundle_pb2_grpc, server_entry_pb2_grpc, server_svid_pb2_grpc
from ca.runtime.debug_report import DebugReport

Service = (
    AdminService | AgentService | BundleService | DebugReport | EntryService | HealthService | NodeService | SvidService
)


def register(server: grpc.aio.Server, services: list[Service]) -> None:
    """Adds each service under its own name."""
    for service in services:
        match service:
            case AdminService():
                admin_pb2_grpc.add_AdminServicer_to_server(service, server)
            case AgentService():
                server_agent_pb2_grpc.add_AgentServicer_to_server(service, server)
            case BundleService():
                server_bundle_pb2_grpc.add_BundleServicer_to_server(service, server)
            case DebugReport():
                debug_pb2_grpc.add_DebugServicer_to_server(service, server)
            case EntryService():
                server_entry_pb2_grpc.add_EntryServicer_to_server(service, server)
            case HealthService():
                health_pb2_grpc.add_HealthServicer_to_server(service, server)
            case NodeService():
                node_pb2_grpc.add_NodeServicer_to_server(service, server)
            case SvidService():
                server_svid_pb2_grpc.add_SVIDServicer_to_server(service, server)
