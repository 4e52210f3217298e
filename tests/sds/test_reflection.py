"""E24: reflection on the workload socket, with and without the security header."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from ca.runtime import reflection
from ca.runtime.rpc import grpc_server
from sds.reflection import SERVICES, Reflection
from tests.sds.lab import status_of
from tests.support.workload_client import HEADER


@pytest.fixture
async def channel():
    directory = tempfile.mkdtemp(prefix="bg-")
    server = grpc_server(f"{directory}/s.sock")
    server.add_generic_rpc_handlers(Reflection().handlers())
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{directory}/s.sock") as made:
        yield made
    await server.stop(None)
    shutil.rmtree(directory)


async def ask(channel: grpc.aio.Channel, version: str, metadata: Any = (), **request: str) -> Any:
    method = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    call = method(metadata=metadata)
    await call.write(reflection_pb2.ServerReflectionRequest(**request).SerializeToString())
    return reflection_pb2.ServerReflectionResponse.FromString(await call.read())


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize("metadata", [(), HEADER])
async def test_the_services_are_listed(channel: grpc.aio.Channel, version: str, metadata: Any):
    answer = await ask(channel, version, metadata, list_services="")
    assert [service.name for service in answer.list_services_response.service] == list(SERVICES)


async def test_a_stream_that_asks_without_end_is_ended(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reflection, "MAX_REQUESTS", 3)
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
    for _ in range(3):
        await call.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
        assert await call.read() is not grpc.aio.EOF
    await call.write(b"")
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "3 reflection requests" in await call.details()


async def files_of(channel: grpc.aio.Channel, symbol: str) -> list[descriptor_pb2.FileDescriptorProto]:
    answer = await ask(channel, "v1", file_containing_symbol=symbol)
    protos = answer.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(proto) for proto in protos]


@pytest.mark.parametrize("service", SERVICES)
async def test_every_service_can_be_described(channel: grpc.aio.Channel, service: str):
    pool = descriptor_pool.DescriptorPool()
    waiting = {file.name: file for file in await files_of(channel, service)}
    while waiting:
        ready = [file for file in waiting.values() if not set(file.dependency) & waiting.keys()]
        assert ready, "the answer has every file that is imported"
        for file in ready:
            pool.Add(waiting.pop(file.name))
    assert pool.FindServiceByName(service).full_name == service


async def test_the_workload_api_has_the_standards_methods_and_no_package(channel: grpc.aio.Channel):  # E22, F2
    (file,) = [f for f in await files_of(channel, "SpiffeWorkloadAPI") if f.name == "workload.proto"]
    assert file.package == ""
    methods = {m.name: (m.input_type, m.output_type, m.server_streaming) for m in file.service[0].method}
    assert methods == {
        "FetchX509SVID": (".X509SVIDRequest", ".X509SVIDResponse", True),
        "FetchX509Bundles": (".X509BundlesRequest", ".X509BundlesResponse", True),
        "FetchJWTSVID": (".JWTSVIDRequest", ".JWTSVIDResponse", False),
        "FetchJWTBundles": (".JWTBundlesRequest", ".JWTBundlesResponse", True),
        "ValidateJWTSVID": (".ValidateJWTSVIDRequest", ".ValidateJWTSVIDResponse", False),
        "FetchWITSVID": (".WITSVIDRequest", ".WITSVIDResponse", True),
        "FetchWITBundles": (".WITBundlesRequest", ".WITBundlesResponse", True),
    }


async def test_an_unknown_symbol_and_a_malformed_request(channel: grpc.aio.Channel):
    answer = await ask(channel, "v1", file_containing_symbol="no.Such")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
    await call.write(b"\xff\xff")
    assert (await status_of(call))[0] == "INVALID_ARGUMENT"
