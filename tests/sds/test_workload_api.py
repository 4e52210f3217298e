"""The issuer's rows of the Workload Endpoint (E) and Workload API (F) standards, over a real socket."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from ca.errors import InvalidArgument, Unavailable
from ca.identity.bundle_json import parse_workload_jwks
from ca.identity.jwt_svid import verify_jwt_svid
from ca.identity.svid import verify_x509_svid
from ca.proto.burgee import workload_pb2 as wl
from sds.workload_api import check_audience
from tests.sds.lab import API, FED, TD, Authority, Lab, entry, eventually, quiet, refused, status_of
from tests.support.workload_client import HEADER, WorkloadClient

STREAMS = {
    "FetchX509SVID": wl.X509SVIDResponse,
    "FetchX509Bundles": wl.X509BundlesResponse,
    "FetchJWTBundles": wl.JWTBundlesResponse,
    "FetchWITSVID": wl.WITSVIDResponse,
    "FetchWITBundles": wl.WITBundlesResponse,
}
UNARY = {
    "FetchJWTSVID": (wl.JWTSVIDRequest(audience=["a"]), wl.JWTSVIDResponse),
    "ValidateJWTSVID": (wl.ValidateJWTSVIDRequest(audience="a", svid="x"), wl.ValidateJWTSVIDResponse),
}


@pytest.fixture
async def lab():
    async with Lab() as lab:
        yield lab


@pytest.fixture
async def client(lab: Lab):
    async with lab.client() as client:
        yield client


async def call(client: WorkloadClient, rpc: str, metadata) -> tuple[str, str]:
    if rpc in STREAMS:
        return await status_of(client.stream(rpc, STREAMS[rpc], metadata=metadata))
    request, reply = UNARY[rpc]
    return await refused(client.unary(rpc, request, reply, metadata=metadata))


@pytest.mark.parametrize("rpc", [*STREAMS, *UNARY])
@pytest.mark.parametrize(
    "metadata",
    [(), ("True",), ("TRUE",), ("false",), ("",), ("1",), ("true", "true")],
    ids=["absent", "True", "TRUE", "false", "empty", "1", "twice"],
)
async def test_every_rpc_refuses_a_request_without_the_header(client: WorkloadClient, rpc: str, metadata):  # E8, E9
    # Also before the agent is ready, and whoever calls: the header is looked at first.
    sent = tuple(("workload.spiffe.io", value) for value in metadata)
    assert await call(client, rpc, sent) == ("INVALID_ARGUMENT", "security header missing from request")


async def test_the_method_set_is_the_standards(client: WorkloadClient):  # E22, E26, F2
    assert (await status_of(client.stream("FetchNothing", wl.X509SVIDResponse)))[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("rpc", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles", *UNARY])
async def test_a_starting_agent_is_unavailable(client: WorkloadClient, rpc: str):  # E26
    assert await call(client, rpc, HEADER) == ("UNAVAILABLE", "the agent is starting")


@pytest.mark.parametrize(
    "rpc", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles", "FetchJWTSVID"]
)  # E21, F21, F25, F32, F36
async def test_no_identity_is_permission_denied(lab: Lab, client: WorkloadClient, rpc: str):
    lab.snapshot(entry("b", "", API))
    assert await call(client, rpc, HEADER) == ("PERMISSION_DENIED", "no identity issued")


@pytest.mark.parametrize("rpc", ["FetchX509SVID", "FetchJWTSVID", "ValidateJWTSVID"])
async def test_a_caller_that_cannot_be_attested_is_told_to_come_again(lab: Lab, client: WorkloadClient, rpc: str):
    lab.snapshot(entry("a"))
    lab.selectors = Unavailable("the kernel does not say")
    assert await call(client, rpc, HEADER) == ("UNAVAILABLE", "workload attestation failed")


async def test_a_fresh_process_gets_its_svid_with_nothing_in_its_hands(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("a", hint="internal"))
    message = await client.x509_svids().read()
    (svid,) = message.svids  # E17, E19, F17
    assert (svid.spiffe_id, svid.hint) == ("spiffe://example.org/a", "internal")
    assert svid.x509_svid  # F18
    assert svid.x509_svid_key
    assert svid.bundle == lab.authority.der
    leaf = x509.load_der_x509_certificate(svid.x509_svid)  # F14
    key = load_der_private_key(svid.x509_svid_key, None)  # F15: PKCS#8 without a password
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.public_key().public_bytes(*spki) == leaf.public_key().public_bytes(*spki)
    verified = verify_x509_svid([svid.x509_svid], {TD: lab.authority.bundle()}, now=lab.clock.now())
    assert str(verified.id) == svid.spiffe_id
    assert list(message.crl) == []


async def test_messages_are_complete_and_driven_by_changes(lab: Lab, client: WorkloadClient):  # F5, F6, F7
    lab.snapshot(entry("b"), federated=True)
    stream = client.x509_svids()
    assert [s.spiffe_id for s in (await stream.read()).svids] == ["spiffe://example.org/b"]
    lab.put(entry("a", hint="h", federates_with=(FED,)))
    message = await stream.read()
    assert [(s.spiffe_id, s.hint) for s in message.svids] == [
        ("spiffe://example.org/a", "h"),
        ("spiffe://example.org/b", ""),
    ]
    assert dict(message.federated_bundles) == {"spiffe://fed.org": lab.foreign.der}
    lab.put(entry("b", hint="i"))
    assert [s.hint for s in (await stream.read()).svids] == ["h", "i"]
    lab.remove("a")
    message = await stream.read()
    assert [s.spiffe_id for s in message.svids] == ["spiffe://example.org/b"]
    assert dict(message.federated_bundles) == {}
    lab.put(bundles=(lab.authority.bundle(Authority()),))
    assert len((await stream.read()).svids[0].bundle) > len(lab.authority.der)
    lab.put(entry("other", "", API))
    lab.put(entry("b", hint="i"))
    await quiet(stream)


async def test_rotation_pushes_the_new_svid(lab: Lab, client: WorkloadClient):  # F6
    lab.server.ttl_seconds = 2
    lab.snapshot(entry("a"))
    stream = client.x509_svids()
    first = await stream.read()
    started = time.monotonic()
    second = await asyncio.wait_for(stream.read(), 3)
    assert 0.5 < time.monotonic() - started < 1.9
    assert second.svids[0].x509_svid != first.svids[0].x509_svid
    assert second.svids[0].x509_svid_key != first.svids[0].x509_svid_key


@pytest.mark.parametrize("rpc", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"])
async def test_a_stream_ends_when_its_last_entry_goes(lab: Lab, client: WorkloadClient, rpc: str):  # F21, F25, F36
    lab.snapshot(entry("a"))
    stream = client.stream(rpc, STREAMS[rpc])
    await stream.read()
    lab.remove("a")
    assert await status_of(stream) == ("PERMISSION_DENIED", "no identity issued")


async def test_the_first_message_comes_without_delay_on_every_stream(lab: Lab, client: WorkloadClient):  # F8
    lab.snapshot(entry("a"))
    await eventually(lambda: lab.cache.svid("a") is not None)
    times = []
    for _ in range(30):
        started = time.monotonic()
        await client.x509_svids().read()
        times.append(time.monotonic() - started)
    assert sorted(times)[len(times) // 2] < 0.05


async def test_a_new_workload_waits_for_its_svid(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("a", disable_x509_svid_prefetch=True))
    await asyncio.sleep(0.05)
    assert lab.server.asked == []
    assert (await client.x509_svids().read()).svids[0].spiffe_id == "spiffe://example.org/a"


async def test_the_wait_for_an_svid_is_bounded_and_says_why():
    async with Lab(patience_seconds=0.1) as lab, lab.client() as client:
        lab.server.down = True
        lab.snapshot(entry("a"))
        assert await status_of(client.x509_svids()) == ("UNAVAILABLE", "the X.509-SVID has not been issued yet")
        # What needs no SVID is not held up by one.
        assert (await client.x509_bundles().read()).bundles
        lab.server.down = False
        await eventually(lambda: lab.cache.svid("a") is not None)
        assert (await client.x509_svids().read()).svids


async def test_one_refused_entry_does_not_starve_the_others():
    async with Lab(patience_seconds=0.1) as lab, lab.client() as client:
        lab.server.refuse = {"a"}
        lab.snapshot(entry("a"), entry("b"))
        assert [s.spiffe_id for s in (await client.x509_svids().read()).svids] == ["spiffe://example.org/b"]


async def test_an_expired_svid_is_never_served():
    async with Lab(patience_seconds=0.2) as lab, lab.client() as client:
        lab.server.ttl_seconds = 1
        lab.snapshot(entry("a"))
        stream = client.x509_svids()
        await stream.read()
        lab.server.down = True
        # Rotation fails; with the SVID's life ends the stream, and no new one is opened on it.
        assert (await status_of(stream))[0] == "UNAVAILABLE"
        svid = lab.cache.svid("a")
        assert svid is not None
        assert lab.clock.now() >= svid.not_after
        assert (await status_of(client.x509_svids()))[0] == "UNAVAILABLE"


async def test_bundles(lab: Lab, client: WorkloadClient):  # F24, F34, F35
    lab.snapshot(entry("a", federates_with=(FED,)), federated=True)
    x509s, jwts = client.x509_bundles(), client.jwt_bundles()
    assert dict((await x509s.read()).bundles) == {
        "spiffe://example.org": lab.authority.der,
        "spiffe://fed.org": lab.foreign.der,
    }
    bundles = dict((await jwts.read()).bundles)
    assert set(bundles) == {"spiffe://example.org", "spiffe://fed.org"}
    assert [a.key_id for a in parse_workload_jwks(bundles["spiffe://fed.org"], FED).jwt_authorities] == [
        lab.foreign.kid
    ]
    assert b"x5c" not in bundles["spiffe://example.org"]
    lab.put(entry("a", hint="h", federates_with=(FED,)))  # no bundle changed: nothing is sent (F6)
    lab.put(entry("a", hint="h"))
    assert set((await x509s.read()).bundles) == {"spiffe://example.org"}
    assert set((await jwts.read()).bundles) == {"spiffe://example.org"}


async def test_hints_are_unique_and_the_oldest_keeps_its_own(lab: Lab, client: WorkloadClient):  # F19, F30
    now = lab.clock.now()
    lab.snapshot(
        entry("a", hint="h", created_at=now), entry("b", hint="h", created_at=now - timedelta(days=1)), entry("c")
    )
    message = await client.x509_svids().read()
    assert [s.hint for s in message.svids] == ["", "h", ""]
    assert [s.hint for s in (await client.jwt_svids("x")).svids] == ["", "h", ""]


async def test_the_order_is_stable_and_the_first_is_the_default(lab: Lab, client: WorkloadClient):  # F59
    lab.snapshot(*[entry(entry_id, f"/{9 - n}") for n, entry_id in enumerate("dbfaec")])
    orders = set()
    for n in range(100):
        orders.add(tuple(s.spiffe_id for s in (await client.x509_svids().read()).svids))
        if n == 50:
            lab.snapshot(*[entry(entry_id, f"/{9 - n}") for n, entry_id in enumerate("dbfaec")])
    assert len(orders) == 1
    assert next(iter(orders))[0] == "spiffe://example.org/6"  # that of entry a


async def test_jwt_svids(lab: Lab, client: WorkloadClient):  # F27, F28, F29
    lab.snapshot(entry("b"), entry("a", hint="h"))
    response = await client.jwt_svids("x", "y")
    assert [(s.spiffe_id, s.hint) for s in response.svids] == [
        ("spiffe://example.org/a", "h"),
        ("spiffe://example.org/b", ""),
    ]
    for svid in response.svids:
        token = verify_jwt_svid(svid.svid, audience="y", bundles={TD: lab.authority.bundle()}, now=lab.clock.now())
        assert set(token.audience) == {"x", "y"}
    assert await client.jwt_svids("y", "x") == response  # cached by audience set
    (one,) = (await client.jwt_svids("x", spiffe_id="spiffe://example.org/b")).svids
    assert one.spiffe_id == "spiffe://example.org/b"


@pytest.mark.parametrize(
    ("audience", "spiffe_id", "expected"),
    [
        ((), "", ("INVALID_ARGUMENT", "audience must be specified")),  # F12
        (("",), "", ("INVALID_ARGUMENT", "audience must be specified")),
        (("a", ""), "", ("INVALID_ARGUMENT", "audience must be specified")),
        (tuple("abcdefghijklmnopq"), "", ("INVALID_ARGUMENT", "at most 16 audiences of 512 bytes each")),
        (("é" * 257,), "", ("INVALID_ARGUMENT", "at most 16 audiences of 512 bytes each")),
        (("a",), "spiffe://example.org/nope", ("PERMISSION_DENIED", "no identity issued")),  # F32
        (("a",), "spiffe://other.org/a", ("PERMISSION_DENIED", "no identity issued")),
        (("a",), "notanid", ("INVALID_ARGUMENT", "invalid requested SPIFFE ID")),
    ],
)
async def test_jwt_svid_refusals(lab: Lab, client: WorkloadClient, audience, spiffe_id: str, expected):
    lab.snapshot(entry("a"))
    code, detail = await refused(client.jwt_svids(*audience, spiffe_id=spiffe_id))
    assert (code, detail[: len(expected[1])]) == expected


def test_repeated_audiences_count_once():
    assert check_audience(["b", "a", "b"]) == ("b", "a")
    with pytest.raises(InvalidArgument):
        check_audience([])


async def test_a_fresh_jwt_is_served_while_the_server_is_silent(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("a"))
    tokens = await client.jwt_svids("x")
    lab.server.silent = True
    started = time.monotonic()
    assert await client.jwt_svids("x") == tokens
    assert time.monotonic() - started < 0.1


async def test_a_jwt_that_cannot_be_had_is_unavailable(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("a"))
    lab.server.down = True
    code, detail = await refused(client.jwt_svids("x"))
    assert code == "UNAVAILABLE"
    assert detail.startswith("could not fetch the JWT-SVID")


async def test_validation_returns_the_claims(lab: Lab, client: WorkloadClient):  # F38, F39, F40
    lab.snapshot(entry("a"))
    (svid,) = (await client.jwt_svids("x")).svids
    answer = await client.validate("x", svid.svid)
    assert answer.spiffe_id == "spiffe://example.org/a"
    assert answer.claims["sub"] == "spiffe://example.org/a"
    assert list(answer.claims["aud"]) == ["x"]
    assert answer.claims["exp"] > lab.clock.now().timestamp()
    assert {"iat", "jti"} <= set(answer.claims)


async def test_validation_needs_no_identity(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("a", "", API))
    token = lab.authority.token({"sub": "spiffe://example.org/z", "aud": "x", "exp": time.time() + 60})
    answer = await client.validate("x", token)
    assert answer.spiffe_id == "spiffe://example.org/z"
    assert list(answer.claims["aud"]) == ["x"]


async def test_foreign_tokens_show_only_what_spiffe_defines(lab: Lab, client: WorkloadClient):  # F39, F42
    claims = {"sub": "spiffe://fed.org/x", "aud": ["x"], "exp": time.time() + 60, "extra": {"n": 1}, "iat": time.time()}
    token = lab.foreign.token(claims)
    lab.snapshot(entry("a"), federated=True)
    code, _ = await refused(client.validate("x", token))
    assert code == "INVALID_ARGUMENT"  # no entry of this caller federates with that domain
    lab.put(entry("a", federates_with=(FED,)))
    answer = await client.validate("x", token)
    assert answer.spiffe_id == "spiffe://fed.org/x"
    assert set(answer.claims) == {"sub", "aud", "exp"}
    forged = lab.authority.token(claims)  # F42: our own key does not vouch for another domain's subject
    assert (await refused(client.validate("x", forged)))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("audience", "svid", "detail"),
    [("", "x", "audience must be specified"), ("x", "", "svid must be specified"), ("x", "garbage", "")],
)
async def test_validation_refusals(lab: Lab, client: WorkloadClient, audience: str, svid: str, detail: str):  # F12
    lab.snapshot(entry("a"))
    code, said = await refused(client.validate(audience, svid))
    assert code == "INVALID_ARGUMENT"
    assert said.startswith(detail)


async def test_wrong_audience_and_age_are_refused(lab: Lab, client: WorkloadClient):  # F38
    lab.snapshot(entry("a"))
    (svid,) = (await client.jwt_svids("x")).svids
    assert (await refused(client.validate("y", svid.svid)))[0] == "INVALID_ARGUMENT"
    old = lab.authority.token({"sub": "spiffe://example.org/a", "aud": ["x"], "exp": time.time() - 3600})
    assert (await refused(client.validate("x", old)))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("rpc", ["FetchWITSVID", "FetchWITBundles"])
async def test_wit_is_unimplemented(lab: Lab, client: WorkloadClient, rpc: str):  # F44
    code, detail = await call(client, rpc, HEADER)
    assert code == "UNIMPLEMENTED"
    assert detail.startswith("fetching WIT")


async def test_a_malformed_request_is_an_invalid_argument(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("a"))
    code, detail = await refused(client.unary("FetchJWTSVID", b"\xff\xff", wl.JWTSVIDResponse))
    assert (code, detail) == ("INVALID_ARGUMENT", "the request is malformed")


async def test_streams_are_let_go_of_when_the_client_leaves(lab: Lab):
    lab.snapshot(entry("a"))
    async with lab.client() as client:
        calls = [client.x509_svids() for _ in range(20)]
        for one in calls:
            await one.read()
        assert lab.cache.streams() == 20
    await eventually(lambda: lab.cache.streams() == 0)


async def test_a_thousand_streams_share_one_message_and_are_told_soon(lab: Lab):
    lab.snapshot(entry("a"))
    await eventually(lambda: lab.cache.svid("a") is not None)
    async with lab.client() as client:
        calls = [client.x509_svids() for _ in range(1000)]
        await asyncio.gather(*(one.read() for one in calls))
        assert lab.attested <= 5
        started = time.monotonic()
        lab.put(entry("b"))
        messages = await asyncio.gather(*(one.read() for one in calls))
        assert time.monotonic() - started < 5
        assert {len(message.svids) for message in messages} == {2}
        assert len({id(view.content) for view in lab.cache._live.values()}) == 1


async def test_the_channel_is_plain_http2(lab: Lab):  # E3, E10
    lab.snapshot(entry("a"))
    async with grpc.aio.insecure_channel(f"unix:{lab.socket}") as channel:
        method = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        assert await method(b"", metadata=HEADER).read()
