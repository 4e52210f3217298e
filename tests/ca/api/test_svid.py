"""SVIDs over the wire: who gets which, what the CSR may say, and that all of it is on record."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.identity.jwt_svid import verify_jwt_svid
from ca.identity.svid import verify_x509_svid
from ca.proto.burgee import admin_pb2
from ca.proto.spire import server_svid_pb2 as pb
from tests.ca.api.refusals import Code, refused
from tests.support.server import Caller, RunningServer, broken_csr, entry, make_csr, running_server, spiffe_id

INVALID, NOT_FOUND = 3, 5
EXAMPLE = "spiffe://example.org"


def wanted(*pairs: tuple[str, bytes]) -> pb.BatchNewX509SVIDRequest:
    return pb.BatchNewX509SVIDRequest(params=[pb.NewX509SVIDParams(entry_id=i, csr=c) for i, c in pairs])


async def batch(caller: Caller, *pairs: tuple[str, bytes]) -> list[Any]:
    return list((await caller.svids.BatchNewX509SVID(wanted(*pairs))).results)


def claims_of(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


class TestBatch:
    async def test_mixed_outcomes_in_order(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        plain, full, _ = await server.create(
            entry("/w/plain", identity.path),
            entry("/w/full", identity.path, x509_svid_ttl=1200, dns_names=["web.example.org"]),
            entry("/w/other", "/spire/agent/join_token/other", id="other"),
        )
        good = make_csr()
        results = await batch(
            caller,
            (plain.id, good),
            (full.id, good),
            ("no-such-id", good),
            ("other", good),
            ("", good),
            (plain.id, b""),
            (plain.id, b"junk"),
            (plain.id, broken_csr()),
            (plain.id, make_csr(uris=[f"{EXAMPLE}/evil"])),
            (plain.id, make_csr(uris=["http://x/y"], dns=["evil.example.org"])),
        )
        codes = [r.status.code for r in results]
        assert codes == [0, 0, NOT_FOUND, NOT_FOUND, INVALID, INVALID, INVALID, INVALID, 0, 0]
        assert results[2].status.message == "entry not found or not authorized (ENTRY_NOT_AUTHORIZED)"
        assert [r.svid.id.path for r in results if not r.status.code] == ["/w/plain", "/w/full", "/w/plain", "/w/plain"]
        svid = verify_x509_svid(results[1].svid.cert_chain, server.server.trust.bundles, now=datetime.now(UTC))
        assert str(svid.id) == f"{EXAMPLE}/w/full"
        assert svid.dns_names == ("web.example.org",)
        assert 1200 <= (svid.not_after - svid.not_before).total_seconds() <= 1211
        for result in results[8:]:
            assert (
                verify_x509_svid(result.svid.cert_chain, server.server.trust.bundles, now=datetime.now(UTC)).dns_names
                == ()
            )

    async def test_key_types(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))
        keys = [
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP384R1()),
            rsa.generate_private_key(65537, 2048),
        ]
        results = await batch(caller, *((made.id, make_csr(key)) for key in keys))
        assert [r.status.code for r in results] == [0, 0, 0]
        for key, result in zip(keys, results, strict=True):
            leaf = x509.load_der_x509_certificate(result.svid.cert_chain[0])
            assert leaf.public_key() == key.public_key()
        weak = make_csr(rsa.generate_private_key(65537, 1024))
        assert (await batch(caller, (made.id, weak)))[0].status.code == INVALID

    async def test_limits(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))
        with refused(Code.INVALID_ARGUMENT, "missing parameters"):
            await batch(caller)
        csr = make_csr()
        assert {r.status.code for r in await batch(caller, *[(made.id, csr)] * 500)} == {0}
        with refused(Code.RESOURCE_EXHAUSTED, "at most 500"):
            await batch(caller, *[(made.id, csr)] * 501)

    async def test_everything_is_on_record(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))
        key = ec.generate_private_key(ec.SECP256R1())
        (result,) = await batch(caller, (made.id, make_csr(key)))
        leaf = x509.load_der_x509_certificate(result.svid.cert_chain[0])
        (record,) = await server.server.store.issuance.find(spiffe_id=f"{EXAMPLE}/w")
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(spki)
        assert record.kind == "x509"
        assert record.serial_or_kid == str(leaf.serial_number)
        assert (record.entry_id, record.agent) == (made.id, f"{EXAMPLE}{identity.path}")
        assert record.key_sha256 == digest.finalize()
        assert record.not_after == leaf.not_valid_after_utc
        tbs = hashes.Hash(hashes.SHA256())
        tbs.update(leaf.tbs_certificate_bytes)
        assert record.tbs_sha256 == tbs.finalize()

    async def test_nothing_is_signed_that_cannot_be_recorded(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ca.errors import Unavailable

        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))

        async def broken(records: object) -> None:
            raise Unavailable("the issuance record cannot be written now")

        monkeypatch.setattr(server.server.store.issuance, "append", broken)
        with refused(Code.UNAVAILABLE, "cannot be written"):
            await batch(caller, (made.id, make_csr()))
        with refused(Code.UNAVAILABLE, "cannot be written"):
            await caller.svids.NewJWTSVID(pb.NewJWTSVIDRequest(entry_id=made.id, audience=["a"]))

    async def test_many_batches_at_once(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))
        csrs = [make_csr() for _ in range(40)]
        rounds = [batch(caller, *((made.id, csr) for csr in csrs)) for _ in range(5)]
        serials = [
            x509.load_der_x509_certificate(result.svid.cert_chain[0]).serial_number
            for results in await asyncio.gather(*rounds)
            for result in results
        ]
        assert len(set(serials)) == 200


class TestMintX509:
    async def mint(self, server: RunningServer, csr: bytes, ttl: int = 0) -> Any:
        return (await server.local.svids.MintX509SVID(pb.MintX509SVIDRequest(csr=csr, ttl=ttl))).svid

    async def test_names_subject_and_lifetimes(self, server: RunningServer) -> None:
        csr = make_csr(uris=[f"{EXAMPLE}/minted"], dns=["a.example.org", "b.example.org"], subject="Acme")
        svid = await self.mint(server, csr, 600)
        leaf = x509.load_der_x509_certificate(svid.cert_chain[0])
        assert svid.id == spiffe_id("/minted")
        assert "O=Acme" in leaf.subject.rfc4514_string()
        assert "CN=a.example.org" in leaf.subject.rfc4514_string()
        now = datetime.now(UTC).timestamp()
        assert abs(svid.expires_at - now - 600) < 5
        assert abs((await self.mint(server, csr, -5)).expires_at - now - 3600) < 5
        capped = await self.mint(server, csr, 2_000_000_000)
        assert capped.expires_at == int(server.server.authority.x509().issuer.not_after.timestamp())

    @pytest.mark.parametrize(
        ("uris", "part"),
        [
            ([], "CSR URI SAN is required"),
            ([f"{EXAMPLE}/a", f"{EXAMPLE}/b"], "only one URI SAN is expected"),
            (["http://example.org/a"], "CSR URI SAN is invalid"),
            (["spiffe://foreign.org/a"], "foreign.org"),
            ([EXAMPLE], "path"),
            ([f"{EXAMPLE}/spire/server"], "spire"),
            ([f"{EXAMPLE}/spire/agent/x"], "spire"),
            ([f"{EXAMPLE}/spire/foo"], "spire"),
            ([f"{EXAMPLE}/a//b"], "empty segments"),
            ([f"{EXAMPLE}/%61"], "path segment characters"),
        ],
    )
    async def test_refused_ids(self, server: RunningServer, uris: list[str], part: str) -> None:
        with refused(Code.INVALID_ARGUMENT, part):
            await self.mint(server, make_csr(uris=uris))

    async def test_refused_requests(self, server: RunningServer) -> None:
        with refused(Code.INVALID_ARGUMENT, "missing CSR"):
            await self.mint(server, b"")
        with refused(Code.INVALID_ARGUMENT, reason="CSR_MALFORMED"):
            await self.mint(server, b"junk")
        with refused(Code.INVALID_ARGUMENT, reason="CSR_SIGNATURE"):
            await self.mint(server, broken_csr())
        with refused(Code.INVALID_ARGUMENT, "DNS name"):
            await self.mint(server, make_csr(uris=[f"{EXAMPLE}/m"], dns=["bad_-.name..x"]))


class TestJwt:
    async def test_for_a_workload(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        plain, full = await server.create(
            entry("/w/plain", identity.path),
            entry(
                "/w/full",
                identity.path,
                jwt_svid_ttl=60,
                hint="h",
                additional_attributes={"jwt_svid_include_jti": True},
            ),
        )
        ask = caller.svids.NewJWTSVID
        svid = (await ask(pb.NewJWTSVIDRequest(entry_id=plain.id, audience=["", "a", "b", "a"]))).svid
        claims = claims_of(svid.token)
        assert claims["aud"] == ["a", "b", "a"]
        assert set(claims) == {"aud", "exp", "iat", "sub"}
        assert (claims["exp"], claims["iat"]) == (svid.expires_at, svid.issued_at)
        assert claims["exp"] - claims["iat"] == 300
        found = verify_jwt_svid(svid.token, audience="b", bundles=server.server.trust.bundles, now=datetime.now(UTC))
        assert str(found.id) == f"{EXAMPLE}/w/plain"
        svid = (await ask(pb.NewJWTSVIDRequest(entry_id=full.id, audience=["a"]))).svid
        claims = claims_of(svid.token)
        assert claims["exp"] - claims["iat"] == 60
        assert len(claims["jti"]) == 22
        assert svid.hint == ""
        assert len(await server.server.store.issuance.find(spiffe_id=f"{EXAMPLE}/w/full")) == 1

    async def test_refused(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        (made,) = await server.create(entry("/w", identity.path))
        ask = caller.svids.NewJWTSVID
        for audience in ([], [""]):
            with refused(Code.INVALID_ARGUMENT, "audience"):
                await ask(pb.NewJWTSVIDRequest(entry_id=made.id, audience=audience))
        for entry_id in ("", "nope"):
            with refused(Code.NOT_FOUND, "entry not found or not authorized"):
                await ask(pb.NewJWTSVIDRequest(entry_id=entry_id, audience=["a"]))

    async def test_minted(self, server: RunningServer) -> None:
        mint = server.local.svids.MintJWTSVID
        for ttl, seconds in ((0, 300), (30, 30), (-1, 300)):
            request = pb.MintJWTSVIDRequest(id=spiffe_id("/m"), audience=["x"], ttl=ttl)
            claims = claims_of((await mint(request)).svid.token)
            assert claims["exp"] - claims["iat"] == seconds
        huge = await mint(pb.MintJWTSVIDRequest(id=spiffe_id("/m"), audience=["x"], ttl=2_000_000_000))
        assert huge.svid.expires_at == int(server.server.authority.jwt().not_after.timestamp())
        for bad, part in (
            (None, "request must specify SPIFFE ID"),
            (spiffe_id("m"), "leading slash"),
            (spiffe_id("/m", "foreign.org"), "is not a member of trust domain"),
            (spiffe_id("/spire/server"), "reserved namespace"),
            (spiffe_id(""), "path is empty"),
        ):
            with refused(Code.INVALID_ARGUMENT, part):
                await mint(pb.MintJWTSVIDRequest(id=bad, audience=["x"]))

    async def test_an_issuer_and_an_rsa_key(self) -> None:
        async with running_server(jwt_issuer="https://issuer.example", jwt_key_type="rsa-2048") as server:
            request = pb.MintJWTSVIDRequest(id=spiffe_id("/m"), audience=["x"])
            token = (await server.local.svids.MintJWTSVID(request)).svid.token
            assert claims_of(token)["iss"] == "https://issuer.example"
            verify_jwt_svid(token, audience="x", bundles=server.server.trust.bundles, now=datetime.now(UTC))


class TestLifetimes:
    async def test_the_admin_api_says_what_cut_a_life_short(self, server: RunningServer) -> None:
        csr = make_csr(uris=[f"{EXAMPLE}/m"])
        mint = server.local.admin.MintX509SVID
        plain = await mint(admin_pb2.MintX509SVIDRequest(csr=csr, ttl_seconds=600))
        assert (plain.lifetime.requested_seconds, plain.lifetime.granted_seconds) == (600, 600)
        assert not plain.lifetime.caps
        cut = await mint(admin_pb2.MintX509SVIDRequest(csr=csr, ttl_seconds=10 * 86400))
        assert cut.lifetime.requested_seconds == 10 * 86400
        assert cut.lifetime.granted_seconds < 86401
        (cap,) = cut.lifetime.caps
        assert (cap.reason, cap.not_after) == ("AUTHORITY_EXPIRES", cut.svid.expires_at)
        token = await server.local.admin.MintJWTSVID(
            admin_pb2.MintJWTSVIDRequest(id=spiffe_id("/m"), audience=["x"], ttl_seconds=10 * 86400)
        )
        assert [c.reason for c in token.lifetime.caps] == ["AUTHORITY_EXPIRES"]


async def test_what_is_not_built_yet_says_so_after_authorization(server: RunningServer) -> None:
    _, agent = await server.agent()
    for method, request in (
        (server.local.svids.MintWITSVID, pb.MintWITSVIDRequest()),
        (agent.svids.BatchNewWITSVID, pb.BatchNewWITSVIDRequest(params=[pb.NewWITSVIDParams()])),
    ):
        with refused(Code.UNIMPLEMENTED, "not yet implemented"):
            await method(request)
