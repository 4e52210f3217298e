"""Server reflection on the workload socket (Workload Endpoint §7, E24), from a descriptor pool of its own.

The process's default pool cannot hold the standard's package-less `workload.proto`: client libraries register theirs
there. So the file is derived from ours (same numbers, other package) in a private pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import descriptor_pool

from ca.runtime import reflection
from ca.runtime.reflection import pool_of, proto_of, repackaged

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

WORKLOAD = "SpiffeWorkloadAPI"
POLICIES = "envoy.service.extension.v3.ExtensionConfigDiscoveryService"
_SERVED = (WORKLOAD, POLICIES, "envoy.service.secret.v3.SecretDiscoveryService", "grpc.health.v1.Health")
SERVICES = (*_SERVED, *reflection.SERVICES)


class Reflection(reflection.Reflection):
    """No header is asked for."""

    def __init__(self) -> None:
        super().__init__(_SERVED, described)


def described() -> descriptor_pool.DescriptorPool:
    """A pool with the files of every service on the socket and all that they import."""
    from envoy.service.extension.v3 import config_discovery_pb2
    from envoy.service.secret.v3 import sds_pb2
    from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

    from ca.proto.burgee import workload_pb2

    pool = pool_of(
        (
            sds_pb2.DESCRIPTOR,
            config_discovery_pb2.DESCRIPTOR,
            health_pb2.DESCRIPTOR,
            *workload_pb2.DESCRIPTOR.dependencies,
        )
    )
    pool.Add(workload_file(proto_of(workload_pb2.DESCRIPTOR)))
    return pool


def workload_file(ours: FileDescriptorProto) -> FileDescriptorProto:
    """The standard's file: our messages without their package, and the service with its seven methods."""
    file = repackaged(ours, "workload.proto", "")
    service = file.service.add(name=WORKLOAD)
    for name, streams in (
        ("X509SVID", True),
        ("X509Bundles", True),
        ("JWTSVID", False),
        ("JWTBundles", True),
        ("WITSVID", True),
        ("WITBundles", True),
    ):
        service.method.add(
            name=f"Fetch{name}",
            input_type=f".{name}Request",
            output_type=f".{name}Response",
            server_streaming=streams,
        )
    service.method.add(
        name="ValidateJWTSVID", input_type=".ValidateJWTSVIDRequest", output_type=".ValidateJWTSVIDResponse"
    )
    return file
