"""TrustDomain, LocalAuthority, Debug, Logger and reflection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from cryptography import x509
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2

from ca.authority.state import AuthorityKind
from ca.proto.spire import server_debug_pb2, server_logger_pb2, server_trustdomain_pb2, types_pb2
from ca.proto.spire import server_localauthority_pb2 as la
from ca.runtime import log
from tests.ca.api.refusals import Code, refused
from tests.support.server import Caller, RunningServer, entry, running_server

V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


class TestTrustDomain:
    async def test_there_are_no_relationships(self, server: RunningServer) -> None:
        pb, stub = server_trustdomain_pb2, server.local.trust_domains
        assert not (
            await stub.ListFederationRelationships(pb.ListFederationRelationshipsRequest(page_token="ignored"))
        ).ListFields()
        with refused(Code.INVALID_ARGUMENT, reason="PAGE_TOKEN"):
            await stub.ListFederationRelationships(
                pb.ListFederationRelationshipsRequest(page_size=2, page_token="junk")
            )
        get = stub.GetFederationRelationship
        with refused(Code.NOT_FOUND, "federation relationship does not exist"):
            await get(pb.GetFederationRelationshipRequest(trust_domain="nope.org"))
        for bad in ("Bad TD", ""):
            with refused(Code.INVALID_ARGUMENT, "failed to parse trust domain"):
                await get(pb.GetFederationRelationshipRequest(trust_domain=bad))

    async def test_writes_are_not_built(self, server: RunningServer) -> None:
        pb, stub = server_trustdomain_pb2, server.local.trust_domains
        for method, request in (
            (stub.BatchCreateFederationRelationship, pb.BatchCreateFederationRelationshipRequest()),
            (stub.BatchUpdateFederationRelationship, pb.BatchUpdateFederationRelationshipRequest()),
            (stub.BatchDeleteFederationRelationship, pb.BatchDeleteFederationRelationshipRequest()),
            (stub.RefreshBundle, pb.RefreshBundleRequest()),
        ):
            with refused(Code.UNIMPLEMENTED, "not yet implemented", reason="NOT_BUILT"):
                await method(request)


_LOCAL_AUTHORITY = la.DESCRIPTOR.services_by_name["LocalAuthority"]


class TestLocalAuthority:
    async def test_states(self, server: RunningServer) -> None:
        stub, active = server.local.authorities, {a.kind: a for a in server.server.authority.authorities}
        for kind, answer in (
            (AuthorityKind.X509, await stub.GetX509AuthorityState(la.GetX509AuthorityStateRequest())),
            (AuthorityKind.JWT, await stub.GetJWTAuthorityState(la.GetJWTAuthorityStateRequest())),
        ):
            assert answer.active.authority_id == active[kind].authority_id
            assert answer.active.expires_at == int(active[kind].not_after.timestamp())
            assert not answer.HasField("prepared")
            assert not answer.HasField("old")

    @pytest.mark.parametrize("method", [m.name for m in _LOCAL_AUTHORITY.methods if "WIT" in m.name])
    async def test_wit_is_not_built(self, server: RunningServer, method: str) -> None:
        with refused(Code.UNIMPLEMENTED, "not yet implemented", reason="NOT_BUILT"):
            await getattr(server.local.authorities, method)(getattr(la, f"{method}Request")())


async def test_debug(server: RunningServer) -> None:
    await server.create(entry("/a", "/spire/agent/join_token/x"), entry("/b", "/spire/agent/join_token/x"))
    await server.agent()
    info = await server.local.debug.GetInfo(server_debug_pb2.GetInfoRequest())
    assert (info.agents_count, info.entries_count, info.federated_bundles_count) == (1, 2, 0)
    assert 0 <= info.uptime < 60
    leaf, root = info.svid_chain
    authority = x509.load_der_x509_certificate(server.roots[0])
    assert (leaf.id.path, leaf.subject) == ("/spire/server", "O=SPIRE,C=US")
    assert (root.id.trust_domain, root.id.path) == ("example.org", "")
    assert root.subject == f"SERIALNUMBER={authority.serial_number},O=SPIFFE,C=US"
    assert root.expires_at == int(authority.not_valid_after_utc.timestamp())


@pytest.fixture
def levels() -> Iterator[None]:
    """The log level as it was."""
    wrapper, root = structlog.get_config()["wrapper_class"], logging.getLogger().level
    yield
    structlog.configure(wrapper_class=wrapper)
    logging.getLogger().setLevel(root)


@pytest.mark.usefixtures("levels")
async def test_logger(capfd: pytest.CaptureFixture[str]) -> None:
    async with running_server(log={"level": "warning"}) as server:
        pb, stub = server_logger_pb2, server.local.logger
        launch = types_pb2.Logger(current_level=types_pb2.WARN, launch_level=types_pb2.WARN)
        assert await stub.GetLogger(pb.GetLoggerRequest()) == launch
        capfd.readouterr()
        for level in (types_pb2.TRACE, types_pb2.ERROR):
            changed = await stub.SetLogLevel(pb.SetLogLevelRequest(new_level=level))
            assert changed == types_pb2.Logger(current_level=level, launch_level=types_pb2.WARN)
            assert await stub.GetLogger(pb.GetLoggerRequest()) == changed
            log.get("test").debug(f"at {level}")
        with refused(Code.INVALID_ARGUMENT, "missing", reason="LOG_LEVEL_MISSING"):
            await stub.SetLogLevel(pb.SetLogLevelRequest())
        with refused(Code.INVALID_ARGUMENT, "no log level `99`", reason="LOG_LEVEL_UNKNOWN"):
            await stub.SetLogLevel(pb.SetLogLevelRequest(new_level=99))
        assert await stub.ResetLogLevel(pb.ResetLogLevelRequest()) == launch
    written = "".join(capfd.readouterr())
    assert f"at {types_pb2.TRACE}" in written
    assert f"at {types_pb2.ERROR}" not in written


async def ask(caller: Caller, **request: str) -> Any:
    call = caller.channel.stream_stream(V1)(timeout=10)
    await call.write(reflection_pb2.ServerReflectionRequest(**request).SerializeToString())
    answer = await call.read()
    if not isinstance(answer, bytes):
        await call  # raises
    return reflection_pb2.ServerReflectionResponse.FromString(answer)


class TestReflection:
    async def test_it_lists_what_is_served(self, server: RunningServer) -> None:
        found = {s.name for s in (await ask(server.local, list_services="")).list_services_response.service}
        assert {"spire.api.server.entry.v1.Entry", "grpc.reflection.v1.ServerReflection"} < found
        assert "burgee.node.v1.Node" in found
        async with running_server(push_service=False) as quiet:
            names = {s.name for s in (await ask(quiet.local, list_services="")).list_services_response.service}
        assert names == found - {"burgee.node.v1.Node"}

    async def test_every_listed_service_can_be_described_and_called(self, server: RunningServer) -> None:
        pool, loaded = descriptor_pool.DescriptorPool(), set()
        listed = (await ask(server.local, list_services="")).list_services_response.service
        for service in listed:
            answer = await ask(server.local, file_containing_symbol=service.name)
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(raw)
                for raw in answer.file_descriptor_response.file_descriptor_proto
            ]
            by_name = {file.name: file for file in files}

            def load(name: str, by_name: dict[str, Any] = by_name) -> None:
                if name not in loaded and name in by_name:
                    loaded.add(name)
                    for dependency in by_name[name].dependency:
                        load(dependency)
                    pool.Add(by_name[name])

            for file in files:
                load(file.name)
            assert pool.FindServiceByName(service.name).methods
        method = pool.FindMethodByName("spire.api.server.bundle.v1.Bundle.CountBundles")
        answer = await server.local.raw("/spire.api.server.bundle.v1.Bundle/CountBundles")
        assert GetMessageClass(method.output_type).FromString(answer).count == 1

    async def test_it_is_not_there_for_the_network(self, server: RunningServer) -> None:
        with refused(Code.UNIMPLEMENTED, "unknown service grpc.reflection.v1.ServerReflection"):
            await ask(await server.caller(), list_services="")

    async def test_junk(self, server: RunningServer) -> None:
        call = server.local.channel.stream_stream(V1)(timeout=10)
        await call.write(b"\xff\xff")
        with refused(Code.INVALID_ARGUMENT, reason="REQUEST_MALFORMED"):
            await call.read()
            await call
