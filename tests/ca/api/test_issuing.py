"""SVIDs for workloads that an administrator vouches for: bounds, shares, and what is malformed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import pytest
from cryptography import x509

from ca.api.issuing import AT_ONCE, IssuingService
from ca.errors import BurgeeError, Code, Denied, FailedPrecondition
from ca.identity.spiffe_id import TrustDomain
from ca.proto.burgee import admin_pb2, issuing_pb2_grpc
from ca.proto.burgee import issuing_pb2 as pb
from ca.proto.spire import types_pb2
from tests.ca.api.refusals import refused
from tests.support.clock import FakeClock
from tests.support.server import Caller, RunningServer, broken_csr, entry, make_csr, running_server, spiffe_id

AGENT = "/spire/agent/k8s_psat/demo/node-1"
INVALID, DENIED = Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


def selectors(*texts: str) -> list[types_pb2.Selector]:
    return [types_pb2.Selector(type=kind, value=value) for kind, value in (text.split(":", 1) for text in texts)]


def wanted(*of_workload: str, **fields: Any) -> pb.IssueX509SVIDParams:
    given: dict[str, Any] = {
        "csr": make_csr(uris=["spiffe://example.org/ignored"]),
        "agent_id": spiffe_id(AGENT),
        "selectors": selectors(*(of_workload or ("k8s:ns:shop",))),
        "requester": "test:somebody",
    }
    return pb.IssueX509SVIDParams(**(given | fields))


async def issue(caller: Caller, params: pb.IssueX509SVIDParams) -> pb.IssueX509SVIDResult:
    """The one result. Raises RefusedError for a refusal of it alone."""
    (result,) = await batch(caller, params)
    if result.HasField("refusal"):
        raise RefusedError(result.refusal)
    return result


async def batch(caller: Caller, *params: pb.IssueX509SVIDParams) -> list[pb.IssueX509SVIDResult]:
    stub: Any = issuing_pb2_grpc.IssuingStub(caller.channel)
    return list((await stub.BatchIssueX509SVID(pb.BatchIssueX509SVIDRequest(params=params))).results)


class RefusedError(Exception):
    def __init__(self, refusal: pb.IssueRefusal) -> None:
        super().__init__(refusal.detail)
        self.code, self.reason = refusal.code, refusal.reason


async def refuse(caller: Caller, params: pb.IssueX509SVIDParams, code: Code, reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        await issue(caller, params)
    assert (caught.value.code, caught.value.reason) == (code.value, reason)


async def test_the_entry_decides_and_of_the_request_only_the_key_counts(server: RunningServer) -> None:
    (made,) = await server.create(entry("/shop", AGENT, "k8s:ns:shop", dns_names=["shop.test"]))
    answer = await issue(server.local, wanted("k8s:ns:shop", "k8s:sa:a"))
    leaf = x509.load_der_x509_certificate(answer.svid.cert_chain[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/shop"]
    assert names.get_values_for_type(x509.DNSName) == ["shop.test"]
    assert (answer.entry_id, answer.svid.id.path) == (made.id, "/shop")
    assert answer.not_before == int(leaf.not_valid_before_utc.timestamp())
    assert answer.not_after == int(leaf.not_valid_after_utc.timestamp())


async def test_a_remote_administrator_may_and_nobody_else(server: RunningServer) -> None:
    """Other callers: test_tiers."""
    await server.create(entry("/shop", AGENT, "k8s:ns:shop"), entry("/admin", AGENT, "k8s:ns:admin", admin=True))
    admin = await server.caller(await server.mint("/admin"))
    assert (await issue(admin, wanted())).svid.id.path == "/shop"
    other = await server.caller(await server.mint("/shop"))
    with refused(grpc.StatusCode.PERMISSION_DENIED, reason="TIER"):
        await issue(other, wanted())


async def test_what_an_agent_that_attested_has_counts_too(server: RunningServer) -> None:
    identity = await server.attest()
    agent = spiffe_id(identity.path)
    await server.create(
        entry("/alias", "/spire/server", f"spiffe_id:spiffe://example.org{identity.path}"),
        entry("/shop", "/alias", "k8s:ns:shop"),
    )
    assert (await issue(server.local, wanted(agent_id=agent))).svid.id.path == "/shop"


async def test_an_alias_takes_all_of_its_selectors(server: RunningServer) -> None:
    await server.create(
        entry("/alias", "/spire/server", "k8s_psat:cluster:demo", "k8s_psat:zone:a"),
        entry("/shop", "/alias", "k8s:ns:shop"),
    )
    some, all_of_them = selectors("k8s_psat:cluster:demo"), selectors("k8s_psat:cluster:demo", "k8s_psat:zone:a")
    await refuse(server.local, wanted(agent_selectors=some), DENIED, "VOUCHED_NO_ENTRY")
    assert (await issue(server.local, wanted(agent_selectors=all_of_them))).svid.id.path == "/shop"
    alone = wanted("k8s_psat:cluster:demo", "k8s_psat:zone:a", agent_selectors=all_of_them)
    await refuse(server.local, alone, DENIED, "VOUCHED_NO_ENTRY")  # an alias is for nodes


async def test_the_nearest_entry_is_named(server: RunningServer) -> None:
    await server.create(
        entry("/far", AGENT, "k8s:ns:a", "k8s:sa:b"), entry("/near", AGENT, "k8s:ns:shop", "k8s:sa:boss")
    )
    with pytest.raises(RefusedError) as caught:
        await issue(server.local, wanted())
    assert "k8s:sa:boss" in str(caught.value)


async def test_each_of_a_batch_has_its_own_result_and_record(server: RunningServer) -> None:
    await server.create(entry("/a", AGENT, "k8s:ns:a"), entry("/b", AGENT, "k8s:ns:b"))
    asked = [wanted("k8s:ns:a"), wanted("k8s:ns:c"), wanted("k8s:ns:b", csr=broken_csr()), wanted("k8s:ns:b")]
    results = await batch(server.local, *asked)
    said = [result.refusal.reason or result.svid.id.path for result in results]
    assert said == ["/a", "VOUCHED_NO_ENTRY", "CSR_SIGNATURE", "/b"]
    pages = [page async for page in server.local.admin.ListAudit(admin_pb2.ListAuditRequest(call="BatchIssueX509SVID"))]
    (record,) = [one for page in pages for one in page.records]
    assert [item.code for item in record.items] == ["OK", "PermissionDenied", "InvalidArgument", "OK"]
    assert all("test:somebody" in item.about for item in record.items)


async def test_a_batch_has_its_bounds(server: RunningServer) -> None:
    for asked, code in (([], grpc.StatusCode.INVALID_ARGUMENT), ([wanted()] * 501, grpc.StatusCode.RESOURCE_EXHAUSTED)):
        with refused(code):
            await batch(server.local, *asked)


async def test_an_entry_that_has_expired_is_for_nobody(server: RunningServer) -> None:
    await server.create(entry("/shop", AGENT, "k8s:ns:shop", expires_at=1))
    await refuse(server.local, wanted(), DENIED, "VOUCHED_NO_ENTRY")


async def test_of_entries_for_one_identity_the_most_particular_counts(server: RunningServer) -> None:
    await server.create(entry("/shop", AGENT, "k8s:ns:shop", x509_svid_ttl=4000))
    await server.create(entry("/shop", AGENT, "k8s:ns:shop", "k8s:sa:a", x509_svid_ttl=5000))
    answer = await issue(server.local, wanted("k8s:ns:shop", "k8s:sa:a"))
    assert answer.not_after - answer.not_before == 5010


@pytest.mark.parametrize(
    ("ttl", "least", "most", "lives"),
    [(0, 0, 0, 3610), (0, 3600, 3600, 3600), (9000, 3600, 7200, 7200), (60, 0, 0, 70)],
)
async def test_lives_within_bounds(server: RunningServer, ttl: int, least: int, most: int, lives: int) -> None:
    await server.create(entry("/shop", AGENT, "k8s:ns:shop", x509_svid_ttl=ttl))
    answer = await issue(server.local, wanted(min_seconds=least, max_seconds=most))
    assert answer.not_after - answer.not_before == lives


async def test_an_authority_that_ends_too_soon_is_no_fault_of_the_entry() -> None:
    async with running_server(ca_ttl_seconds=7200, x509_svid_ttl_seconds=600, agent_ttl_seconds=600) as server:
        await server.create(entry("/shop", AGENT, "k8s:ns:shop", x509_svid_ttl=9000))
        request = wanted(min_seconds=8000)
        await refuse(server.local, request, Code.UNAVAILABLE, "AUTHORITY_EXPIRES")


class _Nobody:
    """An issuer that has no entry for anybody, and limits that there are not."""

    refusal: BurgeeError = Denied("no entry", reason="VOUCHED_NO_ENTRY")

    @asynccontextmanager
    async def x509(self, count: int) -> AsyncIterator[None]:
        yield

    async def issue(self, asked: list[object]) -> list[BurgeeError]:
        return [self.refusal for _ in asked]


async def test_one_share_does_not_take_everything() -> None:
    clock, nobody = FakeClock(), cast(Any, _Nobody())
    nobody.refusal = FailedPrecondition("short", reason="ENTRY_TTL_SHORT")
    service = IssuingService(trust_domain=TrustDomain("example.org"), vouched=nobody, limits=nobody, clock=clock)

    async def ask(share: str) -> pb.IssueRefusal:
        request = pb.BatchIssueX509SVIDRequest(params=[wanted(share=share, csr=b"x")])
        (result,) = (await service.BatchIssueX509SVID(request, cast(Any, None))).results
        return result.refusal

    for _ in range(int(AT_ONCE)):
        assert (await ask("node-1")).reason == "ENTRY_TTL_SHORT"
    refusal = await ask("node-1")
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED.value, "RATE_LIMITED")
    assert (await ask("node-2")).reason == "ENTRY_TTL_SHORT"
    await clock.advance(refusal.retry_after_seconds)
    assert (await ask("node-1")).reason == "ENTRY_TTL_SHORT"


async def test_who_is_nobody_takes_nothing_of_the_share_that_others_have_a_part_in() -> None:
    nobody = cast(Any, _Nobody())
    service = IssuingService(trust_domain=TrustDomain("example.org"), vouched=nobody, limits=nobody, clock=FakeClock())
    request = pb.BatchIssueX509SVIDRequest(params=[wanted(share="node-1", csr=b"x")])
    for _ in range(2 * int(AT_ONCE)):
        (result,) = (await service.BatchIssueX509SVID(request, cast(Any, None))).results
        assert result.refusal.reason == "VOUCHED_NO_ENTRY"


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"csr": b""}, "CSR_MISSING"),
    ({"csr": b"x"}, "CSR_MALFORMED"),
    ({"csr": broken_csr()}, "CSR_SIGNATURE"),
    ({"agent_id": spiffe_id("/workload")}, "SPIFFE_ID"),
    ({"agent_id": spiffe_id(AGENT, "other.org")}, "TRUST_DOMAIN"),
    ({"spiffe_id": spiffe_id("/spire/server")}, "SPIFFE_ID_RESERVED"),
    ({"selectors": []}, "SELECTORS_EMPTY"),
    ({"selectors": selectors(*["a:b"] * 2001)}, "SELECTORS_TOO_MANY"),
    ({"requester": ""}, "REQUESTER"),
    ({"requester": "spiffe://example.org/agent"}, "REQUESTER"),
    ({"requester": "a:\n"}, "REQUESTER"),
    ({"min_seconds": -1}, "TTL_NEGATIVE"),
    ({"min_seconds": 4000, "max_seconds": 3000, "selectors": selectors("k8s:ns:long")}, "TTL_OUT_OF_RANGE"),
]


async def test_what_is_malformed_is_refused(server: RunningServer) -> None:
    await server.create(entry("/shop", AGENT, "k8s:ns:shop"), entry("/long", AGENT, "k8s:ns:long", x509_svid_ttl=9000))
    for changes, reason in MALFORMED:
        await refuse(server.local, wanted(**changes), INVALID, reason)
