"""Server reflection on the workload socket (Workload Endpoint §7, E24), from a descriptor pool of its own.

The process's default pool cannot hold the standard's package-less `workload.proto`: client libraries register theirs
there. So the file is derived from ours (same numbers, other package) in a private pool, which is made at the first
request, because most agents are never asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError

from ca.errors import InvalidArgument
from sds.workloads import Context

WORKLOAD = "SpiffeWorkloadAPI"
V1, V1ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"
SERVICES = (
    WORKLOAD,
    "envoy.service.secret.v3.SecretDiscoveryService",
    "grpc.health.v1.Health",
    f"{V1}.ServerReflection",
    f"{V1ALPHA}.ServerReflection",
)

Files = descriptor_pb2.FileDescriptorProto


class Reflection:
    """Answers under both names that clients use; the messages are the same. No header is asked for."""

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For `server.add_generic_rpc_handlers`."""
        method: Any = grpc.stream_stream_rpc_method_handler(self._serve)
        return tuple(
            grpc.method_handlers_generic_handler(f"{package}.ServerReflection", {"ServerReflectionInfo": method})
            for package in (V1, V1ALPHA)
        )

    @cached_property
    def _servicer(self) -> Any:
        from grpc_reflection.v1alpha.reflection import aio

        return aio.ReflectionServicer(SERVICES, pool=described())

    async def _serve(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async for answer in self._servicer.ServerReflectionInfo(_parsed(requests), context):
            await context.write(answer.SerializeToString())


def described() -> descriptor_pool.DescriptorPool:
    """A pool with the files of every service on the socket and all that they import."""
    from envoy.service.secret.v3 import sds_pb2
    from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
    from grpc_reflection.v1alpha import reflection_pb2

    from ca.proto.burgee import workload_pb2

    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for module in (sds_pb2, health_pb2, reflection_pb2):
        _add(pool, module.DESCRIPTOR, added)
    for dependency in workload_pb2.DESCRIPTOR.dependencies:
        _add(pool, dependency, added)
    pool.Add(workload_file(_proto(workload_pb2.DESCRIPTOR)))
    pool.Add(repackaged(_proto(reflection_pb2.DESCRIPTOR), "grpc/reflection/v1/reflection.proto", V1))
    return pool


def workload_file(ours: Files) -> Files:
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


def repackaged(file: Files, name: str, package: str) -> Files:
    """The same definitions under another file name and package."""
    copy = Files()
    copy.CopyFrom(file)
    before, after = f".{file.package}.", f".{package}." if package else "."
    copy.name, copy.package = name, package

    def renamed(type_name: str) -> str:
        return after + type_name[len(before) :] if type_name.startswith(before) else type_name

    messages = list(copy.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            if field.type_name:  # setting an empty name would count as having one
                field.type_name = renamed(field.type_name)
    for service in copy.service:
        for method in service.method:
            method.input_type, method.output_type = renamed(method.input_type), renamed(method.output_type)
    return copy


def _add(pool: descriptor_pool.DescriptorPool, file: Any, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added)
    pool.Add(_proto(file))


def _proto(file: Any) -> Files:
    proto = Files()
    file.CopyToProto(proto)
    return proto


async def _parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    from grpc_reflection.v1alpha import reflection_pb2

    async for raw in requests:
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(raw)
        except DecodeError as error:
            raise InvalidArgument("the request is malformed", reason="REQUEST_MALFORMED") from error
