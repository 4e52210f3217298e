"""Tokens of an OIDC issuer for SVIDs, over TLS, by whoever has one: a real server and an issuer of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.errors import Code
from ca.identity.jwt_svid import verify_jwt_svid
from ca.identity.spiffe_id import SpiffeId
from ca.identity.svid import verify_x509_svid
from ca.proto.burgee import admin_pb2, exchange_pb2_grpc
from ca.proto.burgee import exchange_pb2 as pb
from ca.proto.spire import server_entry_pb2, types_pb2
from ca.runtime.rpc import error_of
from ca.store.audit import AuditFilter
from tests.ca.api.refusals import refused
from tests.support import postgres
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer
from tests.support.server import Caller, RunningServer, attest, broken_csr, entry, make_csr, running_server

PARENT = "/burgee/oidc/forge"
SUB = "oidc:sub:repo:acme/shop:ref:refs/heads/main"
SHOP = "oidc:claim:repository:acme/shop"
DENIED, INVALID, GONE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with OidcIssuer() as running:
        yield running


def attestors(issuer: OidcIssuer, home: Path, **changes: Any) -> dict[str, Any]:
    forge = {
        "issuer": issuer.url,
        "audience": AUDIENCE,
        "ca_file": str(issuer.ca_file(home)),
        "claims": ["repository"],
        **changes,
    }
    return {"join_token": {}, "oidc": {"issuers": {"forge": forge}}}


@asynccontextmanager
async def served(issuer: OidcIssuer, home: Path, **changes: Any) -> AsyncIterator[RunningServer]:
    async with running_server(node_attestors=attestors(issuer, home), **changes) as server:
        yield server


@pytest.fixture
async def server(issuer: OidcIssuer, tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with served(issuer, tmp_path) as running:
        yield running


async def stranger(server: RunningServer) -> Any:
    """Somebody on the network without any certificate."""
    return stub(await server.caller())


def stub(caller: Caller) -> Any:
    return exchange_pb2_grpc.ExchangeStub(caller.channel)


def x509_request(token: str, csr: bytes | None = None, **fields: Any) -> pb.ExchangeX509SVIDRequest:
    return pb.ExchangeX509SVIDRequest(token=token, csr=csr or make_csr(), **fields)


async def given(by: Any, request: pb.ExchangeX509SVIDRequest) -> types_pb2.X509SVID:
    return (await by.ExchangeX509SVID(request, timeout=20)).svid


def lifetime(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()


async def test_a_token_becomes_an_x509_svid_for_the_key_that_was_proven(
    server: RunningServer, issuer: OidcIssuer
) -> None:
    (made,) = await server.create(entry("/ci/shop", PARENT, SUB, dns_names=["shop.test"]))
    key = ec.generate_private_key(ec.SECP256R1())
    csr = make_csr(key, uris=["spiffe://example.org/admin"], dns=["evil.test"])
    svid = await given(await stranger(server), x509_request(issuer.token(), csr))
    found = verify_x509_svid(list(svid.cert_chain), server.server.trust.bundles, now=server.server.clock.now())
    assert str(found.id) == "spiffe://example.org/ci/shop"
    leaf = x509.load_der_x509_certificate(svid.cert_chain[0])
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert leaf.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["shop.test"]
    assert lifetime(leaf) == 600 + 10
    (record,) = await server.server.store.issuance.find(spiffe_id=str(found.id))
    assert record.agent == "oidc:forge:repo:acme/shop:ref:refs/heads/main"
    assert record.entry_id == made.id
    (audited,) = await server.server.store.audit.find(AuditFilter(call="ExchangeX509SVID"))
    assert (audited.actor, audited.code) == (record.agent, "OK")
    assert [(i.name, i.about) for i in audited.items] == [(str(found.id), made.id)]
    assert audited.origin.startswith("127.0.0.1:")


async def test_a_token_becomes_a_jwt_svid(server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(entry("/ci/shop", PARENT, SHOP, jwt_svid_ttl=120))
    by = await stranger(server)
    request = pb.ExchangeJWTSVIDRequest(token=issuer.token(), audience=["db", "", "web"], issuer="forge")
    svid = (await by.ExchangeJWTSVID(request, timeout=20)).svid
    bundles = server.server.trust.bundles
    found = verify_jwt_svid(svid.token, audience="web", bundles=bundles, now=server.server.clock.now())
    assert (str(found.id), found.audience) == ("spiffe://example.org/ci/shop", ("db", "web"))
    assert svid.expires_at - svid.issued_at == 120
    (record,) = await server.server.store.issuance.find(spiffe_id=str(found.id))
    assert record.agent.startswith("oidc:forge:")


async def test_life_is_what_was_asked_for_as_far_as_entry_and_configuration_go(
    issuer: OidcIssuer, tmp_path: Path
) -> None:
    async with served(issuer, tmp_path, exchange={"max_ttl_seconds": 300}) as server:
        await server.create(
            entry("/long", PARENT, SUB, x509_svid_ttl=3600, jwt_svid_ttl=3600),
            entry("/short", PARENT, SUB, x509_svid_ttl=90, jwt_svid_ttl=70),
        )
        by = await stranger(server)
        for path, asked, granted in (("long", 0, 300), ("long", 100, 100), ("long", 900, 300), ("short", 900, 90)):
            wanted = x509_request(issuer.token(), spiffe_id=f"spiffe://example.org/{path}", ttl_seconds=asked)
            svid = await given(by, wanted)
            assert lifetime(x509.load_der_x509_certificate(svid.cert_chain[0])) == granted + 10
        jwt = pb.ExchangeJWTSVIDRequest(
            token=issuer.token(), audience=["a"], spiffe_id="spiffe://example.org/short", ttl_seconds=900
        )
        made = (await by.ExchangeJWTSVID(jwt, timeout=20)).svid
        assert made.expires_at - made.issued_at == 70


async def test_a_token_serves_once_whatever_it_is_for(server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(entry("/ci/shop", PARENT, SUB))
    by, token, csr = await stranger(server), issuer.token(), make_csr()
    await given(by, x509_request(token, csr))
    with refused(DENIED, reason="EVIDENCE_USED"):
        await given(by, x509_request(token, csr))
    with refused(DENIED, reason="EVIDENCE_USED"):
        await by.ExchangeJWTSVID(pb.ExchangeJWTSVIDRequest(token=token, audience=["a"]), timeout=20)
    with refused(DENIED, reason="EVIDENCE_USED"):
        await attest(await server.caller(), token.encode(), make_csr(), "oidc")
    assert len(await server.server.store.issuance.find(spiffe_id="spiffe://example.org/ci/shop")) == 1


async def test_of_many_calls_with_one_token_one_is_answered(server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(entry("/ci/shop", PARENT, SUB))
    by, token = await stranger(server), issuer.token()
    outcomes = await asyncio.gather(*(given(by, x509_request(token)) for _ in range(20)), return_exceptions=True)
    reasons = [error_of(o).reason for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert reasons == ["EVIDENCE_USED"] * 19


async def test_a_node_attests_by_a_token_and_serves_its_entries(server: RunningServer, issuer: OidcIssuer) -> None:
    result = await attest(await server.caller(), issuer.token().encode(), make_csr(), "oidc")
    assert result.svid.id.path.startswith("/spire/agent/oidc/forge/")
    assert not result.reattestable
    await server.create(entry("/below", PARENT, SUB))
    agent = SpiffeId.parse(f"spiffe://example.org{result.svid.id.path}")
    assert not server.server.index.authorized(agent), "entries for exchanges are not an agent's"


async def told_to(call: Any) -> tuple[str, str, str]:
    """Reason, text and request id as the caller sees them."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = error_of(caught.value)
    assert error.request_id
    return error.reason, error.detail + error.hint, error.request_id


async def reason_of(call: Any) -> str:
    return (await told_to(call))[0]


async def test_the_caller_learns_a_reason_and_an_id_and_administrators_the_claim(
    server: RunningServer, issuer: OidcIssuer, capsys: pytest.CaptureFixture[str]
) -> None:
    await server.create(entry("/ci/shop", PARENT, SUB))
    by = await stranger(server)
    faults = {
        "TOKEN_AUDIENCE": issuer.token(aud="somebody-else"),
        "TOKEN_EXPIRED": issuer.token(iat=1, nbf=1, exp=100),
        "TOKEN_ISSUER": issuer.token(iss="https://other.example"),
        "TOKEN_SIGNATURE": issuer.token(key=ec.generate_private_key(ec.SECP256R1())),
        "TOKEN_ALGORITHM": issuer.token(header={"alg": "none"}),
    }
    told = set()
    for fault, token in faults.items():
        capsys.readouterr()
        reason, text, request_id = await told_to(given(by, x509_request(token)))
        told.add((reason, text))
        lines = [line for line in "".join(capsys.readouterr()).splitlines() if "exchange refused" in line]
        assert len(lines) == 1
        assert fault in lines[0]
        assert request_id in lines[0]
    assert len(told) == 1, "the caller cannot tell one from another"
    assert told.pop()[0] == "TOKEN_REFUSED"
    assert "exchange" in {attempt.attestor for attempt in server.server.attestation.ring}


async def test_which_entries_there_are_is_nobodys_business(server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(
        entry("/ci/one", PARENT, SUB),
        entry("/ci/two", PARENT, SHOP),
        entry("/ci/other", PARENT, "oidc:sub:other"),
        entry("/elsewhere", "/burgee/oidc/other", SUB),
    )
    by, token = await stranger(server), issuer.token()
    reason, told, _ = await told_to(given(by, x509_request(token)))
    assert reason == "EXCHANGE_AMBIGUOUS"
    assert "/ci/" not in told
    for name in ("ci/other", "elsewhere", "no/such", "ci/one/below"):
        other = x509_request(token, spiffe_id=f"spiffe://example.org/{name}")
        assert await reason_of(given(by, other)) == "EXCHANGE_NO_ENTRY"
    svid = await given(by, x509_request(token, spiffe_id="spiffe://example.org/ci/two"))  # it is still good
    assert svid.id.path == "/ci/two"


async def test_of_entries_for_one_identity_the_most_particular_counts(
    server: RunningServer, issuer: OidcIssuer
) -> None:
    await server.create(
        entry("/ci/shop", PARENT, SHOP, x509_svid_ttl=100),
        entry("/ci/shop", PARENT, SHOP, SUB, x509_svid_ttl=200),
    )
    svid = await given(await stranger(server), x509_request(issuer.token()))
    assert lifetime(x509.load_der_x509_certificate(svid.cert_chain[0])) == 210


async def test_no_entry_no_svid(server: RunningServer, issuer: OidcIssuer, capsys: pytest.CaptureFixture[str]) -> None:
    by, token = await stranger(server), issuer.token()
    assert await reason_of(given(by, x509_request(token))) == "EXCHANGE_NO_ENTRY"
    await server.create(entry("/ci/shop", PARENT, SUB, "oidc:claim:environment:production"))
    assert await reason_of(given(by, x509_request(token))) == "EXCHANGE_NO_ENTRY"
    assert "wants besides: `oidc:claim:environment:production`" in "".join(capsys.readouterr())
    await server.create(entry("/ci/shop", PARENT, SUB, expires_at=1))
    assert await reason_of(given(by, x509_request(token))) == "EXCHANGE_NO_ENTRY"


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"token": ""}, "TOKEN_MALFORMED"),
    ({"token": "a.b.c"}, "TOKEN_MALFORMED"),
    ({"token": "x" * 20_000}, "TOKEN_MALFORMED"),
    ({"token": "é.é.é"}, "TOKEN_MALFORMED"),
    ({"csr": b"junk"}, "CSR_MALFORMED"),
    ({"csr": b"x" * 20_000}, "CSR_TOO_LONG"),
    ({"csr": broken_csr()}, "CSR_SIGNATURE"),
    ({"spiffe_id": "example.org/ci"}, ""),
    ({"issuer": "x" * 65}, "EXCHANGE_ISSUER"),
    ({"ttl_seconds": -1}, "TTL_NEGATIVE"),
]


async def test_what_is_malformed_uses_nothing_up(server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(entry("/ci/shop", PARENT, SUB))
    by, good = await stranger(server), x509_request(issuer.token())
    for changes, reason in MALFORMED:
        bad = pb.ExchangeX509SVIDRequest()
        bad.CopyFrom(good)
        for name, value in changes.items():
            setattr(bad, name, value)
        with refused(INVALID, reason=reason):
            await given(by, bad)
    await given(by, good)


async def test_a_jwt_svid_needs_an_audience(server: RunningServer, issuer: OidcIssuer) -> None:
    by = await stranger(server)
    for names in ([], [""], ["a"] * 100, ["x" * 9000]):
        with refused(INVALID):
            await by.ExchangeJWTSVID(pb.ExchangeJWTSVIDRequest(token=issuer.token(), audience=names), timeout=20)
    with refused(INVALID, reason="CSR_MISSING"):
        await by.ExchangeX509SVID(pb.ExchangeX509SVIDRequest(token=issuer.token()), timeout=20)


async def test_another_issuers_name(server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(entry("/ci/shop", PARENT, SUB))
    by, token = await stranger(server), issuer.token()
    with refused(DENIED, reason="TOKEN_REFUSED"):
        await given(by, x509_request(token, issuer="other"))
    await given(by, x509_request(token, issuer="forge"))


async def test_an_issuer_that_is_away_is_told_as_such(server: RunningServer, issuer: OidcIssuer) -> None:
    await server.create(entry("/ci/shop", PARENT, SUB))
    issuer.down = True
    with refused(GONE, reason="TOKEN_ISSUER_UNAVAILABLE") as found:
        await given(await stranger(server), x509_request(issuer.token()))
    assert found.error is not None
    assert found.error.retry_after_seconds


async def test_calls_from_one_address_have_a_rate(issuer: OidcIssuer, tmp_path: Path) -> None:
    limits = {"burst_seconds": 1, "exchanges_per_second_per_address": 2}
    async with served(issuer, tmp_path, limits=limits) as server:
        by = await stranger(server)
        for _ in range(2):
            with refused(INVALID):
                await given(by, x509_request("a.b.c"))
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="RATE_LIMITED"):
            await given(by, x509_request("a.b.c"))


async def test_where_no_issuer_is_configured_nothing_is_exchanged() -> None:
    async with running_server() as server:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="EXCHANGE_NOT_CONFIGURED") as found:
            await given(await stranger(server), x509_request("a.b.c"))
        assert found.error is not None
        (attempt,) = await attempts(server, found.error.request_id)
        assert (attempt.attestor, attempt.reason) == ("exchange", "EXCHANGE_NOT_CONFIGURED")


async def attempts(server: RunningServer, name: str) -> list[admin_pb2.AttestationAttempt]:
    answer = await server.local.admin.ExplainAgent(admin_pb2.ExplainAgentRequest(name=name), timeout=10)
    return list(answer.attempts)


async def test_what_is_refused_before_a_look_at_the_token_is_explained_too(issuer: OidcIssuer, tmp_path: Path) -> None:
    limits = {"burst_seconds": 1, "exchanges_per_second_per_address": 4}
    async with served(issuer, tmp_path, limits=limits) as server:
        by = await stranger(server)
        for request, reason in (
            (pb.ExchangeX509SVIDRequest(token="a.b.c"), "CSR_MISSING"),
            (pb.ExchangeJWTSVIDRequest(token="a.b.c"), "AUDIENCE_MISSING"),
            (x509_request(""), "TOKEN_MALFORMED"),
            (x509_request("a.b.c", ttl_seconds=-1), "TTL_NEGATIVE"),
            (x509_request("a.b.c"), "RATE_LIMITED"),
        ):
            call = by.ExchangeX509SVID if isinstance(request, pb.ExchangeX509SVIDRequest) else by.ExchangeJWTSVID
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, timeout=20)
            error = error_of(caught.value)
            (attempt, *_) = await attempts(server, error.request_id)
            assert (error.reason, attempt.reason, attempt.id) == (reason, reason, error.request_id)


@pytest.mark.real("PostgreSQL")
async def test_of_two_servers_with_one_store_one_takes_a_token(issuer: OidcIssuer, tmp_path: Path) -> None:
    with postgres.database() as url:
        store = {"url": url}
        async with served(issuer, tmp_path, store=store) as one, served(issuer, tmp_path, store=store) as two:
            await one.create(entry("/ci/shop", PARENT, SUB))
            await two.server.follower.catch_up()
            callers = [await stranger(one), await stranger(two)]
            for _ in range(5):
                token = issuer.token()
                outcomes = await asyncio.gather(
                    *(given(by, x509_request(token)) for by in callers), return_exceptions=True
                )
                errors = [error_of(o) for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
                assert [(e.code, e.reason) for e in errors] == [(Code.PERMISSION_DENIED, "EVIDENCE_USED")]


async def test_nobody_bears_the_id_of_such_a_parent(server: RunningServer) -> None:
    request = server_entry_pb2.BatchCreateEntryRequest(entries=[entry(PARENT, "/spire/server")])
    (result,) = (await server.local.entries.BatchCreateEntry(request)).results
    assert "SPIFFE_ID_RESERVED" in result.status.message


async def test_an_issuer_that_does_not_answer_keeps_nobody_from_working(issuer: OidcIssuer, tmp_path: Path) -> None:
    """Who waits for its keys, by a token that anybody can make up, has no place among those who sign meanwhile."""
    asked = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await done.wait()
        writer.close()

    done = asyncio.Event()
    other = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = f"https://127.0.0.1:{other.sockets[0].getsockname()[1]}/keys"
    configured = attestors(issuer, tmp_path, jwks_uri=address)
    async with running_server(node_attestors=configured, limits={"admission_running": 1}) as server:
        caller = await server.caller()
        waiting = [
            asyncio.create_task(attest(caller, issuer.token().encode(), make_csr(), "oidc")),
            asyncio.create_task(given(stub(caller), x509_request(issuer.token()))),
        ]
        async with asyncio.timeout(5):
            await asked.wait()
            await server.attest()
        assert not any(task.done() for task in waiting)
        done.set()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError)
            assert error_of(outcome).reason == "TOKEN_ISSUER_UNAVAILABLE"
    other.close()
