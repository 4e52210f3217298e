"""Bundles of other trust domains: kept, masked, paged, deleted with what hangs on them."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import server_entry_pb2, types_pb2
from tests.ca.api.refusals import Code, refused
from tests.support.server import RunningServer, entry

OK, INVALID, NOT_FOUND, EXISTS, PRECONDITION = 0, 3, 5, 6, 9
Mask = types_pb2.BundleMask
MODES = pb.BatchDeleteFederatedBundleRequest


def spki(key: Any = None) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


KEY = types_pb2.JWTKey(public_key=spki(), key_id="fedkey", expires_at=4102444800)


def fed(server: RunningServer, name: str = "fed.org", **fields: Any) -> types_pb2.Bundle:
    values: dict[str, Any] = {
        "trust_domain": name,
        "x509_authorities": [types_pb2.X509Certificate(asn1=server.roots[0])],
        "jwt_authorities": [KEY],
        "refresh_hint": 300,
        "sequence_number": 7,
    }
    return types_pb2.Bundle(**values | fields)


async def create(server: RunningServer, *bundles: types_pb2.Bundle, **more: Any) -> list[Any]:
    request = pb.BatchCreateFederatedBundleRequest(bundle=bundles, **more)
    return list((await server.local.bundles.BatchCreateFederatedBundle(request)).results)


async def update(server: RunningServer, *bundles: types_pb2.Bundle, **more: Any) -> list[Any]:
    request = pb.BatchUpdateFederatedBundleRequest(bundle=bundles, **more)
    return list((await server.local.bundles.BatchUpdateFederatedBundle(request)).results)


async def put(server: RunningServer, *bundles: types_pb2.Bundle, **more: Any) -> list[Any]:
    request = pb.BatchSetFederatedBundleRequest(bundle=bundles, **more)
    return list((await server.local.bundles.BatchSetFederatedBundle(request)).results)


async def delete(server: RunningServer, *names: str, mode: Any = MODES.RESTRICT) -> list[tuple[int, str]]:
    request = pb.BatchDeleteFederatedBundleRequest(trust_domains=names, mode=mode)
    results = (await server.local.bundles.BatchDeleteFederatedBundle(request)).results
    return [(result.status.code, result.trust_domain) for result in results]


async def listed(server: RunningServer, **more: Any) -> Any:
    return await server.local.bundles.ListFederatedBundles(pb.ListFederatedBundlesRequest(**more))


def codes(results: list[Any]) -> list[int]:
    return [result.status.code for result in results]


async def test_create(server: RunningServer) -> None:
    (made,) = await create(server, fed(server))
    assert (made.status.code, made.status.message, made.bundle) == (OK, "OK", fed(server))
    own, uri = fed(server, "example.org"), fed(server, "spiffe://uri.org")
    results = await create(
        server,
        fed(server),
        own,
        fed(server, "Bad TD"),
        fed(server, ""),
        uri,
        fed(server, "new.org"),
        output_mask=Mask(),
    )
    assert codes(results) == [EXISTS, INVALID, INVALID, INVALID, OK, OK]
    assert results[0].status.message == "bundle already exists (BUNDLE_EXISTS)"
    assert not results[0].HasField("bundle")
    assert [r.bundle for r in results[4:]] == [types_pb2.Bundle(trust_domain=name) for name in ("uri.org", "new.org")]
    assert (await server.local.bundles.CountBundles(pb.CountBundlesRequest())).count == 4
    assert await create(server) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x509_authorities": [types_pb2.X509Certificate(asn1=b"junk")]}, "unable to parse X.509 authority: malformed"),
        ({"x509_authorities": [types_pb2.X509Certificate()]}, "unable to parse X.509 authority: malformed"),
        ({"jwt_authorities": [types_pb2.JWTKey(public_key=KEY.public_key)]}, "JWT authority: missing key ID"),
        ({"jwt_authorities": [types_pb2.JWTKey(public_key=b"junk", key_id="k")]}, "JWT authority: malformed"),
        ({"jwt_authorities": [types_pb2.JWTKey(key_id="k")]}, "JWT authority: malformed"),
        ({"refresh_hint": -1}, "out of range"),
        ({"sequence_number": 2**63}, "out of range"),
        ({"jwt_authorities": [types_pb2.JWTKey(public_key=KEY.public_key, key_id="k", expires_at=2**62)]}, "range"),
    ],
)
async def test_what_is_no_bundle_is_refused(server: RunningServer, fields: dict[str, Any], message: str) -> None:
    for call in (create, put):
        (result,) = await call(server, fed(server, **fields))
        assert result.status.code == INVALID
        assert result.status.message.startswith("failed to convert bundle: ")
        assert message in result.status.message


async def test_a_key_that_no_jwks_can_carry_is_refused(server: RunningServer) -> None:
    odd = types_pb2.JWTKey(public_key=spki(dsa.generate_private_key(2048)), key_id="k")
    assert codes(await create(server, fed(server, jwt_authorities=[odd]))) == [INVALID]


async def test_several_certificates_in_one_field_become_several_authorities(server: RunningServer) -> None:
    await with_other(server)
    first, second = server.roots
    (made,) = await create(server, fed(server, x509_authorities=[types_pb2.X509Certificate(asn1=first + second)]))
    assert [authority.asn1 for authority in made.bundle.x509_authorities] == [first, second]


async def test_an_empty_bundle_and_taints_are_kept(server: RunningServer) -> None:
    tainted = fed(
        server,
        "tainted.org",
        x509_authorities=[types_pb2.X509Certificate(asn1=server.roots[0], tainted=True)],
        jwt_authorities=[types_pb2.JWTKey(public_key=KEY.public_key, key_id="k", tainted=True)],
    )
    empty = types_pb2.Bundle(trust_domain="empty.org")
    results = await create(server, empty, tainted)
    assert [result.bundle for result in results] == [empty, tainted]
    assert list((await listed(server)).bundles) == [empty, tainted]


async def test_update_and_its_masks(server: RunningServer) -> None:
    await create(server, fed(server))
    (one,) = await update(server, fed(server, refresh_hint=99, sequence_number=8), input_mask=Mask(refresh_hint=True))
    assert one.bundle == fed(server, refresh_hint=99)
    (two,) = await update(server, fed(server, refresh_hint=11, sequence_number=5))
    assert two.bundle == fed(server, refresh_hint=11, sequence_number=5)
    (same,) = await update(server, fed(server), input_mask=Mask())
    assert same.bundle == two.bundle
    (gone,) = await update(server, types_pb2.Bundle(trust_domain="fed.org"), input_mask=Mask(x509_authorities=True))
    assert gone.bundle == fed(server, refresh_hint=11, sequence_number=5, x509_authorities=[])
    results = await update(server, fed(server, "nope.org"), fed(server, "example.org"), fed(server, "Bad TD"))
    assert codes(results) == [NOT_FOUND, INVALID, INVALID]
    assert results[0].status.message == "bundle not found (BUNDLE_NOT_FOUND)"


async def test_set(server: RunningServer) -> None:
    await create(server, fed(server))
    results = await put(
        server, fed(server, refresh_hint=12), fed(server, "set.org"), fed(server, "example.org"),
        output_mask=Mask(refresh_hint=True),
    )  # fmt: skip
    assert codes(results) == [OK, OK, INVALID]
    assert [(r.bundle.trust_domain, r.bundle.refresh_hint) for r in results[:2]] == [("fed.org", 12), ("set.org", 300)]
    assert results[1].bundle.sequence_number == 0


async def test_pages_are_full(server: RunningServer) -> None:
    names = ["b.org", "a.org", "d.org", "c.org", "e.org"]
    await create(server, *(fed(server, name) for name in names))
    assert [bundle.trust_domain for bundle in (await listed(server)).bundles] == names
    found, token = [], ""
    for expected in (2, 2, 1):
        page = await listed(server, output_mask=Mask(), page_size=2, page_token=token)
        assert len(page.bundles) == expected
        found, token = found + [bundle.trust_domain for bundle in page.bundles], page.next_page_token
    assert (found, token) == (names, "")
    ignored = await listed(server, page_token="junk")
    assert len(ignored.bundles) == 5
    with refused(Code.INVALID_ARGUMENT, "page token", reason="PAGE_TOKEN"):
        await listed(server, page_size=2, page_token="junk")


async def test_get(server: RunningServer) -> None:
    await create(server, fed(server))
    get = server.local.bundles.GetFederatedBundle
    _, agent = await server.agent()
    for name in ("fed.org", "spiffe://fed.org"):
        for call in (get, agent.bundles.GetFederatedBundle):
            assert await call(pb.GetFederatedBundleRequest(trust_domain=name)) == fed(server)
    masked = await get(pb.GetFederatedBundleRequest(trust_domain="fed.org", output_mask=Mask(refresh_hint=True)))
    assert masked == types_pb2.Bundle(trust_domain="fed.org", refresh_hint=300)
    with refused(Code.NOT_FOUND, "there is no bundle of `nope.org`"):
        await get(pb.GetFederatedBundleRequest(trust_domain="nope.org"))
    with refused(Code.INVALID_ARGUMENT, "own trust domain is not allowed"):
        await get(pb.GetFederatedBundleRequest(trust_domain="example.org"))
    for bad in ("Bad TD", ""):
        with refused(Code.INVALID_ARGUMENT, "trust domain argument is not valid"):
            await get(pb.GetFederatedBundleRequest(trust_domain=bad))


class TestDelete:
    async def made(self, server: RunningServer) -> str:
        await create(server, fed(server), fed(server, "set.org"))
        (one,) = await server.create(entry("/e", "/spire/agent/join_token/x", federates_with=["set.org", "fed.org"]))
        return one.id

    async def entries(self, server: RunningServer) -> list[Any]:
        return list((await server.local.entries.ListEntries(server_entry_pb2.ListEntriesRequest())).entries)

    async def test_restrict_and_what_is_no_federated_bundle(self, server: RunningServer) -> None:
        await self.made(server)
        await create(server, fed(server, "free.org"))
        outcome = await delete(server, "set.org", "nope.org", "example.org", "Bad TD", "", "spiffe://free.org")
        assert outcome == [
            (PRECONDITION, "set.org"), (NOT_FOUND, "nope.org"), (INVALID, "example.org"), (INVALID, "Bad TD"),
            (INVALID, ""), (OK, "free.org"),
        ]  # fmt: skip
        assert [bundle.trust_domain for bundle in (await listed(server)).bundles] == ["fed.org", "set.org"]

    async def test_dissociate(self, server: RunningServer) -> None:
        entry_id = await self.made(server)
        assert await delete(server, "set.org", mode=MODES.DISSOCIATE) == [(OK, "set.org")]
        (left,) = await self.entries(server)
        assert (left.id, list(left.federates_with), left.revision_number) == (entry_id, ["fed.org"], 1)

    async def test_delete(self, server: RunningServer) -> None:
        await self.made(server)
        assert await delete(server, "set.org", mode=MODES.DELETE) == [(OK, "set.org")]
        assert await self.entries(server) == []
        assert await delete(server, "fed.org") == [(OK, "fed.org")]

    async def test_an_unknown_mode(self, server: RunningServer) -> None:
        await self.made(server)
        with refused(Code.INVALID_ARGUMENT, "delete mode", reason="DELETE_MODE"):
            await delete(server, "set.org", mode=7)


async def test_batches_are_bounded(server: RunningServer) -> None:
    with refused(Code.RESOURCE_EXHAUSTED, "at most 1000", reason="BATCH_TOO_LARGE"):
        await create(server, *[types_pb2.Bundle()] * 1001)
    with refused(Code.RESOURCE_EXHAUSTED, reason="BATCH_TOO_LARGE"):
        await delete(server, *[""] * 1001)


async def with_other(server: RunningServer) -> None:
    """A second root in our own bundle."""
    from tests.ca.api.test_own_bundle import a_root

    request = pb.AppendBundleRequest(x509_authorities=[types_pb2.X509Certificate(asn1=a_root())])
    await server.local.bundles.AppendBundle(request)
