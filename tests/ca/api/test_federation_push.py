"""What agents learn, over the push stream, of bundles that come, change and go while they are connected or away."""

from __future__ import annotations

from collections.abc import Iterable

from ca.proto.burgee import node_pb2
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import types_pb2
from tests.ca.api.test_federated_bundles import MODES, create, delete, fed, update
from tests.ca.api.test_node import Stream
from tests.support.server import RunningServer, entry, eventually


def gone(update: node_pb2.SyncResponse) -> set[tuple[str, str]]:
    return {(removed.kind, removed.name) for removed in update.removed}


async def until_it_holds(stream: Stream, domains: Iterable[str]) -> None:
    wanted = {"example.org", *domains}
    while set(stream.bundles) != wanted:
        await stream.next()


async def test_create_change_and_delete_reach_an_open_stream(server: RunningServer) -> None:
    identity, caller = await server.agent()
    stream = Stream(caller)
    await stream.open()
    await create(server, fed(server), fed(server, "other.org"))
    (made,) = await server.create(entry("/w", identity.path, federates_with=["fed.org"]))
    await until_it_holds(stream, ["fed.org"])
    assert stream.bundles["fed.org"] == fed(server)
    await update(server, fed(server, "other.org", refresh_hint=1), fed(server, refresh_hint=60))
    changed = await stream.next()
    assert {resource.name for resource in changed.resources} == {"fed.org"}  # and nothing of the other domain
    assert stream.bundles["fed.org"] == fed(server, refresh_hint=60)
    await delete(server, "fed.org", mode=MODES.DISSOCIATE)
    await until_it_holds(stream, [])
    assert list(stream.entries[made.id].federates_with) == []


async def test_deleted_with_its_entries(server: RunningServer) -> None:
    identity, caller = await server.agent()
    await create(server, fed(server))
    (made,) = await server.create(entry("/w", identity.path, federates_with=["fed.org"]))
    stream = Stream(caller)
    await stream.open()
    assert set(stream.bundles) == {"example.org", "fed.org"}
    await delete(server, "fed.org", mode=MODES.DELETE)
    seen: set[tuple[str, str]] = set()
    while len(seen) < 2:
        seen |= gone(await stream.next())
    assert seen == {("entry", made.id), ("bundle", "fed.org")}


async def test_what_happened_meanwhile_reaches_an_agent_that_resumes(server: RunningServer) -> None:
    identity, caller = await server.agent()
    await create(server, fed(server), fed(server, "gone.org"))
    await server.create(entry("/w", identity.path, federates_with=["fed.org", "gone.org"]))
    stream = Stream(caller)
    await stream.open()
    assert set(stream.bundles) == {"example.org", "fed.org", "gone.org"}
    stream.cancel()
    await update(server, fed(server, refresh_hint=60))
    await delete(server, "gone.org", mode=MODES.DISSOCIATE)
    back = Stream(caller)
    first = await back.open(epoch=stream.epoch, revision=stream.revision)
    assert not first.snapshot
    assert gone(first) == {("bundle", "gone.org")}
    assert back.bundles["fed.org"].refresh_hint == 60


async def test_keys_of_downstream_servers_reach_every_agent(server: RunningServer) -> None:
    from tests.ca.api.test_own_bundle import downstream, jwk

    _, caller = await server.agent()
    stream, key = Stream(caller), jwk("ds-key")
    await stream.open()
    below = await downstream(server)
    await below.bundles.PublishJWTAuthority(pb.PublishJWTAuthorityRequest(jwt_authority=key))
    await until_key(stream, key)


async def until_key(stream: Stream, key: types_pb2.JWTKey) -> None:
    while key not in stream.bundles["example.org"].jwt_authorities:
        await stream.next()


async def test_roots_of_other_domains_are_known_to_the_next_handshake(server: RunningServer) -> None:
    before = server.server.server_svid.material().client_authorities
    from tests.ca.api.test_own_bundle import a_root

    root = a_root("foreign")
    await create(server, fed(server, x509_authorities=[types_pb2.X509Certificate(asn1=root)]))
    await eventually(lambda: server.server.server_svid.material().client_authorities == (*before, root))
    await delete(server, "fed.org")
    assert server.server.server_svid.material().client_authorities == before
