"""GetBundle and its mask; the server's own answers about itself."""

from __future__ import annotations

import os
import stat
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from ca.proto.burgee import admin_pb2
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import types_pb2
from tests.ca.api.refusals import Code, refused
from tests.support.server import RunningServer, running_server


async def test_get_bundle_and_masks(server: RunningServer) -> None:
    caller = await server.caller()
    whole = await caller.bundles.GetBundle(pb.GetBundleRequest())
    own = server.server.trust.own
    assert whole.trust_domain == "example.org"
    assert [a.asn1 for a in whole.x509_authorities] == [a.certificate for a in own.x509_authorities]
    (key,) = whole.jwt_authorities
    assert (key.key_id, key.public_key) == (own.jwt_authorities[0].key_id, own.jwt_authorities[0].public_key)
    assert key.expires_at > 0
    assert whole.sequence_number == 1
    assert whole.refresh_hint == 0
    mask = types_pb2.BundleMask(sequence_number=True)
    masked = await caller.bundles.GetBundle(pb.GetBundleRequest(output_mask=mask))
    assert masked == types_pb2.Bundle(trust_domain="example.org", sequence_number=1)
    empty = await caller.bundles.GetBundle(pb.GetBundleRequest(output_mask=types_pb2.BundleMask()))
    assert empty == types_pb2.Bundle(trust_domain="example.org")


async def test_status_and_health(server: RunningServer) -> None:
    status = await server.local.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert status.trust_domain == "example.org"
    assert status.ready
    assert not status.problems
    assert status.store_epoch == server.server.store.epoch
    assert status.revision == server.server.follower.revision
    health: Any = health_pb2_grpc.HealthStub(server.local.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == serving
    assert (await health.List(health_pb2.HealthListRequest())).statuses[""].status == serving
    with refused(Code.INVALID_ARGUMENT, "per-service health is not supported"):
        await health.Check(health_pb2.HealthCheckRequest(service="nope"))
    with refused(Code.UNIMPLEMENTED, "Watch not implemented"):
        async for _ in health.Watch(health_pb2.HealthCheckRequest()):
            pass


async def test_unready_says_why(server: RunningServer) -> None:
    server.server.authority._signing._active.clear()  # the authority is lost
    status = await server.local.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert not status.ready
    assert [p.reason for p in status.problems] == ["NO_ACTIVE_AUTHORITY"]
    health: Any = health_pb2_grpc.HealthStub(server.local.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_admin_socket_is_private(server: RunningServer) -> None:
    path = server.config.admin_socket_path
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(path.parent).st_mode) == 0o700


async def test_who_is_admitted_to_the_admin_socket() -> None:
    from ca.runtime.gate import PeerCred

    async with running_server(admin_socket={"admin_uids": [4711]}) as server:
        admits = server.server._admits()
        for uid, expected in ((0, True), (os.geteuid(), True), (4711, True), (4712, False)):
            assert admits(PeerCred(1, uid, uid)) is expected
