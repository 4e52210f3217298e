"""The spire upstream: whose identity it comes with, whom it believes to be the server, and what it makes of answers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, Unavailable
from ca.identity.spiffe_id import TrustDomain
from ca.ports import FindingLevel, UpstreamBundle
from ca.proto.burgee import workload_pb2
from ca.proto.spire import server_bundle_pb2, types_pb2
from ca.runtime.config import from_values
from ca.upstream.spire import SpireUpstream, SpireUpstreamConfig
from ca.upstream.wire import bundle_value, jwt_authorities
from ca.upstream.workload import read_identity
from tests.ca.identity.forge import TD, key, root, spki
from tests.support.authority_host import authority_host
from tests.support.server import Identity, RunningServer, entry, eventually, make_csr, running_server
from tests.support.tls_server import tls_server
from tests.support.workload_api import WorkloadApi

HOUR = 3600


@dataclass(kw_only=True)
class Lab:
    """A server above, the Workload API that its agent would have, and upstreams made of both."""

    above: RunningServer
    api: WorkloadApi
    directory: Path
    made: list[SpireUpstream]

    def upstream(self, **changes: Any) -> SpireUpstream:
        host, port = self.above.server.address
        values = {
            "servers": [f"{host}:{port}"],
            "workload_socket": str(self.api.socket),
            "timeout_seconds": 2.0,
        } | changes
        made = SpireUpstream(from_values(values, SpireUpstreamConfig), authority_host(self.directory))
        self.made.append(made)
        return made

    async def identity(self, path: str = "/down") -> Identity:
        return await self.above.mint(path)


@asynccontextmanager
async def lab() -> AsyncIterator[Lab]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    async with running_server() as above, WorkloadApi(directory / "w.sock") as api:
        await above.create(entry("/down", "/spire/agent/join_token/x", downstream=True))
        made = Lab(above=above, api=api, directory=directory, made=[])
        try:
            yield made
        finally:
            for upstream in made.made:
                await upstream.close()
            shutil.rmtree(directory, ignore_errors=True)


async def refusal(upstream: SpireUpstream) -> BurgeeError:
    with pytest.raises(BurgeeError) as caught:
        await upstream.mint(make_csr(), HOUR)
    return caught.value


async def test_before_there_is_an_identity_it_is_denied_and_heals_by_itself() -> None:
    async with lab() as place:
        upstream = place.upstream()
        found = await refusal(upstream)
        assert (type(found), found.reason) == (Denied, "UPSTREAM_NO_IDENTITY")
        assert "downstream" in found.hint
        with pytest.raises(Unavailable):
            await upstream.start()
        running = asyncio.create_task(upstream.run())
        try:
            await eventually(lambda: (p := upstream.problem()) is not None and p.reason == "UPSTREAM_NO_IDENTITY")
            await place.api.give(await place.identity(), roots=place.above.roots)
            await eventually(lambda: upstream.problem() is None)
            assert len((await upstream.mint(make_csr(), HOUR)).chain) == 1
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_renewed_identity_is_taken_up_and_calls_under_way_are_not_cut() -> None:
    async with lab() as place:
        await place.api.give(await place.identity(), roots=place.above.roots)
        upstream = place.upstream()
        running = asyncio.create_task(upstream.run())
        try:
            await upstream.start()
            streams = place.api.streams
            for _ in range(5):
                calls = [asyncio.create_task(upstream.mint(make_csr(), HOUR)) for _ in range(5)]
                await asyncio.sleep(0)
                await place.api.give(await place.identity(), roots=place.above.roots)
                assert all(len(answer.chain) == 1 for answer in await asyncio.gather(*calls))
            assert place.api.streams == streams
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_of_several_identities_the_named_one_or_the_first_of_the_trust_domain_is_used() -> None:
    async with lab() as place:
        other, down = await place.identity("/other"), await place.identity("/down")
        await place.api.give(other, down, roots=place.above.roots)
        assert (await refusal(place.upstream())).reason == "UPSTREAM_DENIED"
        answer = await place.upstream(spiffe_id="spiffe://example.org/down").mint(make_csr(), HOUR)
        assert len(answer.chain) == 1
        found = await refusal(place.upstream(spiffe_id="spiffe://example.org/absent"))
        assert (type(found), found.reason) == (FailedPrecondition, "UPSTREAM_IDENTITY")
        assert "example.org/other" in found.hint


async def test_an_agent_of_another_trust_domain_is_a_mistake_of_the_configuration() -> None:
    async with lab() as place, running_server(trust_domain="other.org") as foreign:
        await place.api.give(await foreign.mint("/down"), roots=foreign.roots, trust_domain="other.org")
        with pytest.raises(ConfigError) as caught:
            await place.upstream().start()
        assert caught.value.reason == "UPSTREAM_TRUST_DOMAIN"


async def test_an_identity_that_is_not_given_now_keeps_no_server_from_starting() -> None:
    """It may be given again, and the server has an authority for now."""
    async with lab() as place:
        await place.api.give(await place.identity("/other"), roots=place.above.roots)
        with pytest.raises(Unavailable) as caught:
            await place.upstream(spiffe_id="spiffe://example.org/down").start()
        assert caught.value.reason == "UPSTREAM_IDENTITY"


async def test_a_server_that_is_not_of_the_bundle_gets_nothing() -> None:
    """Same trust domain, same SPIFFE ID, other roots."""
    async with lab() as place, running_server() as impostor:
        await place.api.give(await place.identity(), roots=place.above.roots)
        host, port = impostor.server.address
        upstream = place.upstream(servers=[f"{host}:{port}"])
        found = await refusal(upstream)
        assert (type(found), found.reason) == (Unavailable, "UPSTREAM_UNTRUSTED")
        assert "SVID_UNTRUSTED" in found.detail
        assert [f.what for f in await upstream.check() if f.level == FindingLevel.FAILED] == ["server"]


async def test_a_workload_of_the_trust_domain_is_not_its_server() -> None:
    """It has a chain that verifies, and another SPIFFE ID."""
    async with lab() as place:
        await place.api.give(await place.identity(), roots=place.above.roots)
        async with tls_server(await place.identity("/web")) as address:
            found = await refusal(place.upstream(servers=[address]))
        assert found.reason == "UPSTREAM_UNTRUSTED"
        assert "SERVER_ID_MISMATCH" in found.detail


async def test_the_second_server_is_used_when_the_first_is_away() -> None:
    async with lab() as place:
        await place.api.give(await place.identity(), roots=place.above.roots)
        host, port = place.above.server.address
        upstream = place.upstream(servers=["127.0.0.1:1", f"{host}:{port}"])
        assert len((await upstream.mint(make_csr(), HOUR)).chain) == 1


async def test_no_agent_is_unavailable_in_bounded_time() -> None:
    async with lab() as place:
        found = await refusal(place.upstream(workload_socket=str(place.directory / "nobody.sock")))
        assert (type(found), found.reason) == (Unavailable, "UPSTREAM_WORKLOAD_API")


async def test_an_agent_that_hangs_is_unavailable_in_bounded_time() -> None:
    """It accepts, and says nothing."""
    async with lab() as place:
        path = place.directory / "hangs.sock"
        silent = await asyncio.start_unix_server(lambda *_: asyncio.sleep(60), str(path))
        try:
            async with asyncio.timeout(10):
                found = await refusal(place.upstream(workload_socket=str(path), timeout_seconds=0.5))
            assert (type(found), found.reason) == (Unavailable, "UPSTREAM_WORKLOAD_API")
        finally:
            silent.close()


async def test_taints_and_new_authorities_of_the_bundle_are_seen() -> None:
    async with lab() as place:
        await place.api.give(await place.identity(), roots=place.above.roots)
        upstream, extra = place.upstream(), root("extra")
        before = await upstream.bundle()
        request = server_bundle_pb2.AppendBundleRequest(x509_authorities=[types_pb2.X509Certificate(asn1=extra.der)])
        await place.above.local.bundles.AppendBundle(request)
        after = await upstream.bundle()
        assert [a.certificate for a in after.x509_authorities] == [
            *(a.certificate for a in before.x509_authorities),
            extra.der,
        ]
        assert after.jwt_authorities == before.jwt_authorities
        assert len(before.jwt_authorities) == 1


def test_a_bundle_is_read_with_its_taints() -> None:
    one, two = root("one"), root("two")
    jwt = types_pb2.JWTKey(public_key=spki(key("P-256", "j")), key_id="j", expires_at=4102444800, tainted=True)
    message = types_pb2.Bundle(
        x509_authorities=[
            types_pb2.X509Certificate(asn1=one.der + one.der, tainted=True),
            types_pb2.X509Certificate(asn1=two.der),
        ],
        jwt_authorities=[jwt],
    )
    found: UpstreamBundle = bundle_value(message)
    assert [(a.certificate, a.tainted) for a in found.x509_authorities] == [(one.der, True), (two.der, False)]
    assert [(a.key_id, a.tainted, a.expires_at) for a in found.jwt_authorities] == [
        ("j", True, datetime(2100, 1, 1, tzinfo=UTC))
    ]


@pytest.mark.parametrize(
    "message",
    [
        types_pb2.Bundle(x509_authorities=[types_pb2.X509Certificate(asn1=b"junk")]),
        types_pb2.Bundle(x509_authorities=[types_pb2.X509Certificate(asn1=b"\x30\x01\x00")]),
        types_pb2.Bundle(x509_authorities=[types_pb2.X509Certificate(asn1=root("many").der)] * 1001),
        types_pb2.Bundle(jwt_authorities=[types_pb2.JWTKey(public_key=spki(key("P-256", "j")))]),
        types_pb2.Bundle(jwt_authorities=[types_pb2.JWTKey(public_key=b"junk", key_id="k")]),
        types_pb2.Bundle(
            jwt_authorities=[types_pb2.JWTKey(public_key=spki(key("P-256", "j")), key_id="k", expires_at=2**62)]
        ),
    ],
)
def test_a_bundle_with_what_cannot_be_read_is_refused(message: types_pb2.Bundle) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        bundle_value(message)
    assert caught.value.reason == "UPSTREAM_CHAIN_MALFORMED"


def test_an_authority_without_end_has_none() -> None:
    (found,) = jwt_authorities([types_pb2.JWTKey(public_key=spki(key("P-256", "j")), key_id="k")])
    assert found.expires_at is None


@pytest.mark.parametrize("broken", ["x509_svid", "x509_svid_key", "bundle"])
async def test_an_identity_that_cannot_be_used_is_refused(broken: str) -> None:
    async with lab() as place:
        await place.api.give(await place.identity(), roots=place.above.roots)
        svid = await _given(place)
        assert read_identity(workload_pb2.X509SVIDResponse(svids=[svid]), TD, None).svid.id.path == "/down"
        setattr(svid, broken, b"junk")
        with pytest.raises(FailedPrecondition) as caught:
            read_identity(workload_pb2.X509SVIDResponse(svids=[svid]), TD, None)
        assert caught.value.reason == "UPSTREAM_IDENTITY"


async def test_an_identity_with_another_key_is_refused() -> None:
    async with lab() as place:
        await place.api.give(await place.identity(), roots=place.above.roots)
        svid = await _given(place)
        await place.api.give(await place.identity("/other"), roots=place.above.roots)
        svid.x509_svid_key = (await _given(place)).x509_svid_key
        with pytest.raises(FailedPrecondition):
            read_identity(workload_pb2.X509SVIDResponse(svids=[svid]), TrustDomain("example.org"), None)


async def _given(place: Lab) -> workload_pb2.X509SVID:
    answer = place.api._answer
    assert answer is not None
    found = workload_pb2.X509SVID()
    found.CopyFrom(answer.svids[0])
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"servers": []},
        {"servers": ["nohost"]},
        {"servers": ["a:99999"]},
        {"spiffe_id": "http://x"},
        {"timeout_seconds": 0.0},
        {"server_address": "x"},
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {"servers": ["a:8081"], "workload_socket": "/run/w.sock"}
    from_values(good, SpireUpstreamConfig)
    with pytest.raises(ConfigError):
        from_values(good | changes, SpireUpstreamConfig)
