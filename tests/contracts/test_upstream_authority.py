"""What every upstream authority promises (ca.ports.UpstreamAuthority), asked of each one with its real other side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.errors import BurgeeError, Denied, InvalidArgument, Unavailable, Unimplemented
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.identity.svid import verify_x509_svid
from ca.ports import Connected, FindingLevel, UpstreamAuthority, UpstreamCa
from ca.upstream.proof import Need, ProvedCa, prove
from tests.ca.upstream.openssl import need_openssl, svid_below, verify
from tests.contracts.upstreams import STANDS, TIMEOUT_SECONDS, Stand
from tests.support.server import broken_csr, eventually, make_csr

TD = TrustDomain("example.org")
HOUR = 3600
BOUND_SECONDS = 4 * TIMEOUT_SECONDS + 4
"""No call lasts longer, whatever the other side does: a few time-outs, and a slow machine."""


@pytest.fixture(params=STANDS)
async def stand(request: pytest.FixtureRequest) -> AsyncIterator[Stand]:
    async with STANDS[request.param]() as made:
        yield made


@pytest.fixture(params=[name for name in STANDS if name != "disk"])
async def remote(request: pytest.FixtureRequest) -> AsyncIterator[Stand]:
    """Those that can hang and deny; files do neither."""
    async with STANDS[request.param]() as made:
        yield made


@pytest.fixture
def upstream(stand: Stand) -> UpstreamAuthority:
    return stand.upstream


def public(key: Any) -> bytes:
    der: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def proved(answer: UpstreamCa, key: Any, ttl_seconds: int = HOUR) -> ProvedCa:
    need = Need(ttl_seconds=ttl_seconds, longest_svid_seconds=0, margin_seconds=0)
    return prove(answer, trust_domain=TD, public_key_der=public(key), need=need, now=datetime.now(UTC))


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def left(authority: ProvedCa) -> timedelta:
    return authority.not_after - datetime.now(UTC)


KEYS: dict[str, Callable[[], Any]] = {
    "ec-p256": p256,
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa-2048": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


@pytest.mark.parametrize("kind", KEYS)
async def test_what_it_mints_is_proved(upstream: UpstreamAuthority, kind: str) -> None:
    key = KEYS[kind]()
    found = proved(await upstream.mint(make_csr(key), HOUR), key)
    assert timedelta(seconds=HOUR - 30) < left(found) <= timedelta(seconds=HOUR)
    assert found.path_length is None
    assert found.warnings == ()


async def test_an_svid_below_it_is_believed_by_us_and_by_openssl(upstream: UpstreamAuthority, tmp_path: Path) -> None:
    """With the root alone in the bundle, whatever lies between."""
    need_openssl()
    key = p256()
    found = proved(await upstream.mint(make_csr(key), HOUR), key)
    now = datetime.now(UTC)
    leaf = svid_below(found.chain[0], key, now=now)
    bundle = TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=found.root),))
    assert verify_x509_svid([leaf, *found.chain], {TD: bundle}, now=now).id.path == "/web"
    assert verify(tmp_path, leaf, found.chain, [found.root], at=now, strict=True) == ""


async def test_its_roots_are_those_of_its_bundle(upstream: UpstreamAuthority) -> None:
    minted = await upstream.mint(make_csr(), HOUR)
    bundle = await upstream.bundle()
    assert {a.certificate for a in bundle.x509_authorities} == set(minted.roots)
    assert not any(a.tainted for a in bundle.x509_authorities)


async def test_many_at_once_are_served_each_with_its_own(upstream: UpstreamAuthority) -> None:
    keys = [p256() for _ in range(5)]
    minted = await asyncio.gather(*(upstream.mint(make_csr(key), HOUR) for key in keys))
    authorities = [proved(answer, key) for answer, key in zip(minted, keys, strict=True)]
    serials = {x509.load_der_x509_certificate(authority.chain[0]).serial_number for authority in authorities}
    assert len(serials) == 5


async def test_of_a_request_only_the_key_counts(upstream: UpstreamAuthority) -> None:
    key = p256()
    request = make_csr(key, uris=["spiffe://evil.org/x", "http://x"], dns=["evil.org"], subject="Evil")
    authority = x509.load_der_x509_certificate(proved(await upstream.mint(request, HOUR), key).chain[0])
    names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://example.org"]
    assert "Evil" not in authority.subject.rfc4514_string()


@pytest.mark.parametrize(
    ("request_der", "reason"),
    [
        (b"", "CSR_MALFORMED"),
        (b"junk", "CSR_MALFORMED"),
        (b"\x30\x00", "CSR_MALFORMED"),
        (broken_csr(), "CSR_SIGNATURE"),
        (make_csr() + b"more", "CSR_MALFORMED"),
        (b"x" * 20_000, "CSR_TOO_LONG"),
    ],
)
async def test_a_bad_request_is_refused(upstream: UpstreamAuthority, request_der: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await upstream.mint(request_der, HOUR)
    assert caught.value.reason == reason


async def test_a_life_longer_than_its_own_is_cut_and_the_proof_says_so(stand: Stand) -> None:
    key = p256()
    wanted = 2 * int(stand.limit.total_seconds())
    found = proved(await stand.upstream.mint(make_csr(key), wanted), key, wanted)
    assert stand.limit - timedelta(minutes=5) < left(found) <= stand.limit
    assert [warning.what for warning in found.warnings] == ["lifetime"]


async def test_a_jwt_key_is_published_where_they_are_kept(stand: Stand) -> None:
    key = JwtAuthority(key_id="k1", public_key=public(p256()), expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    if not stand.keeps_jwt:
        with pytest.raises(Unimplemented):
            await stand.upstream.publish_jwt_key(key)
        assert (await stand.upstream.bundle()).jwt_authorities == ()
        return
    before = (await stand.upstream.bundle()).jwt_authorities
    assert await stand.upstream.publish_jwt_key(key) == (*before, key)
    assert await stand.upstream.publish_jwt_key(key) == (*before, key)
    assert (await stand.upstream.bundle()).jwt_authorities == (*before, key)


async def test_a_check_of_what_is_well_is_well_and_leaves_nothing(stand: Stand) -> None:
    before = await stand.kept()
    findings = await stand.upstream.check()
    assert [f for f in findings if f.level != FindingLevel.OK] == []
    whats = [finding.what for finding in findings]
    assert whats[-1] == "left behind"
    assert {"signing", "root", "new authority"} <= set(whats)
    assert all(finding.detail for finding in findings)
    assert await stand.kept() == before


async def bounded(call: Awaitable[object]) -> object:
    """What the call gives or raises, in bounded time; the event loop turns meanwhile."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    turning = asyncio.create_task(turn())
    started = time.monotonic()
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            return await call
    except BurgeeError as error:
        return error
    finally:
        turning.cancel()
        assert turns >= (time.monotonic() - started - 0.5) * 20


async def trouble(stand: Stand, kind: type[BurgeeError]) -> None:
    """Every call says so, the check too, and after the healing all is as before."""
    await_all = [stand.upstream.mint(make_csr(), HOUR), stand.upstream.bundle()]
    for outcome in [await bounded(call) for call in await_all]:
        assert isinstance(outcome, kind), outcome
        assert outcome.reason.startswith(("UPSTREAM_", "VAULT_"))
        assert outcome.hint or outcome.detail
    findings = await bounded(stand.upstream.check())
    assert isinstance(findings, tuple | list), findings
    assert FindingLevel.FAILED in {finding.level for finding in findings}


async def works(stand: Stand) -> bool:
    try:
        key = p256()
        proved(await stand.upstream.mint(make_csr(key), HOUR), key)
        await stand.upstream.bundle()
    except Unavailable:
        return False
    return True


async def test_unreachable(stand: Stand) -> None:
    assert await works(stand)
    stand.vanish()
    await trouble(stand, Unavailable)
    stand.heal()
    await eventually(lambda: works(stand))


async def test_hanging(remote: Stand) -> None:
    """Both a connection that is there and new ones get no answer."""
    assert await works(remote)
    remote.hang()
    await trouble(remote, Unavailable)
    remote.heal()
    await eventually(lambda: works(remote), seconds=15)


async def test_denied(remote: Stand) -> None:
    await remote.deny()
    outcome = await bounded(remote.upstream.mint(make_csr(), HOUR))
    assert isinstance(outcome, Denied)
    assert outcome.reason in ("UPSTREAM_DENIED", "VAULT_DENIED")
    assert outcome.hint
    findings = await remote.upstream.check()
    assert [f.what for f in findings if f.level == FindingLevel.FAILED][:1] == ["signing"]


async def test_it_starts_runs_and_closes(stand: Stand) -> None:
    upstream: Any = stand.upstream
    connected: Connected = upstream
    await connected.start()
    running = asyncio.create_task(connected.run())
    try:
        await asyncio.sleep(0.1)
        assert connected.problem() is None
        assert not running.done()
        assert await works(stand)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await connected.close()


async def test_a_start_without_the_other_side_is_unavailable(stand: Stand) -> None:
    """The server goes on with the authority that it has; `run` gets it back by itself."""
    upstream: Any = stand.upstream
    connected: Connected = upstream
    stand.vanish()
    outcome = await bounded(connected.start())
    assert isinstance(outcome, Unavailable)
    running = asyncio.create_task(connected.run())
    try:
        stand.heal()
        await eventually(lambda: works(stand))
        await eventually(lambda: connected.problem() is None)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await connected.close()
