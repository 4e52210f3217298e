"""Server reflection under both names that clients use, from a descriptor pool that is made at the first request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from ca.errors import Exhausted, InvalidArgument
from ca.runtime.rpc_handlers import Context

V1, V1ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"
SERVICES = (f"{V1}.ServerReflection", f"{V1ALPHA}.ServerReflection")

MAX_REQUESTS = 1_000
"""On one stream; a client asks for each service and file once."""

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto


class Reflection:
    """Describes `services` (full names; its own two come with them) from the pool that `describe` makes."""

    def __init__(self, services: Sequence[str], describe: Callable[[], descriptor_pool.DescriptorPool]) -> None:
        self._services = services
        self._describe = describe

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

        return aio.ReflectionServicer((*self._services, *SERVICES), pool=self._describe())

    async def _serve(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async for answer in self._servicer.ServerReflectionInfo(_parsed(requests), context):
            await context.write(answer.SerializeToString())


def pool_of(files: Iterable[Any]) -> descriptor_pool.DescriptorPool:
    """A pool of its own with these files (descriptors), all that they import, and reflection's own."""
    from grpc_reflection.v1alpha import reflection_pb2

    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for file in (*files, reflection_pb2.DESCRIPTOR):
        _add(pool, file, added)
    pool.Add(repackaged(proto_of(reflection_pb2.DESCRIPTOR), "grpc/reflection/v1/reflection.proto", V1))
    return pool


def repackaged(file: FileDescriptorProto, name: str, package: str) -> FileDescriptorProto:
    """The same definitions under another file name and package."""
    copy = type(file)()
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


def proto_of(file: Any) -> FileDescriptorProto:
    """A file's descriptor as a message. Python's generated code leaves `json_name` out; tools print JSON by it."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto  # which takes half a megabyte

    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    messages = list(proto.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            head, *rest = field.name.split("_")
            field.json_name = field.json_name or head + "".join(part.capitalize() for part in rest)
    return proto


def _add(pool: descriptor_pool.DescriptorPool, file: Any, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added)
    pool.Add(proto_of(file))


async def _parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    from grpc_reflection.v1alpha import reflection_pb2

    count = 0
    async for raw in requests:
        count += 1
        if count > MAX_REQUESTS:
            raise Exhausted(
                f"more than {MAX_REQUESTS} reflection requests on one stream",
                reason="REFLECTION_LIMIT",
                hint="begin another one",
            )
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(raw)
        except DecodeError as error:
            raise InvalidArgument("the request is malformed", reason="REQUEST_MALFORMED") from error
