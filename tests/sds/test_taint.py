"""A tainted authority: what hangs on it is replaced within a second or so, nothing else is, and no tokens stay."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ca.identity.bundle import TrustBundle, authority_id
from ca.identity.svid import parse_x509_svid
from sds.feed import Change, ResumeToken
from sds.follower import follow_with
from sds.jwt_cache import JwtIssued, key_id
from sds.rotation import Issued
from sds.taint import SPREAD_SECONDS, taint_delay
from tests.sds.lab import TD, Authority, Lab, entry
from tests.support.clock import FakeClock


def issuer_of(lab: Lab, entry_id: str) -> str:
    svid = lab.cache.svid(entry_id)
    assert svid is not None
    return parse_x509_svid(svid.chain).authority_key_id


def certificate_below(root: Authority, middle: Authority) -> bytes:
    """The middle's key certified by the root, under the middle's name."""
    own = middle.certificate
    builder = x509.CertificateBuilder(
        root.certificate.subject, own.subject, own.public_key(), x509.random_serial_number()
    )
    builder = builder.not_valid_before(own.not_valid_before_utc).not_valid_after(own.not_valid_after_utc)
    for extension in own.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key())
    signed = builder.add_extension(above, critical=False).sign(root.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


async def test_svids_of_a_tainted_authority_are_replaced_within_a_second_but_not_in_a_loop():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    old, new = lab.authority, Authority(now=clock.now())
    lab.put(bundles=(old.bundle(new, tainted=[old]),))
    assert await lab.rotator.round() <= SPREAD_SECONDS  # it knows when it will be time
    await clock.advance(SPREAD_SECONDS)
    await lab.rotator.round()
    await lab.rotator.round()
    assert len(lab.server.asked) == 2  # the server still signs with the tainted one: asked again, but later
    assert lab.rotator.failure("a") == "AUTHORITY_TAINTED"
    lab.server.authority = new
    await clock.advance(6)
    await lab.rotator.round()
    assert issuer_of(lab, "a") == authority_id(new.der)
    assert len(lab.server.asked) == 3
    await lab.rotator.round()
    assert len(lab.server.asked) == 3
    await lab.keys.close()


async def test_svids_of_an_authority_that_is_gone_are_replaced_too():
    """Taint and removal may come as one."""
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    new = Authority(now=clock.now())
    lab.server.authority = new
    lab.put(bundles=(new.bundle(),))
    await lab.rotator.round()
    await clock.advance(SPREAD_SECONDS)
    await lab.rotator.round()
    assert issuer_of(lab, "a") == authority_id(new.der)
    assert len(lab.server.asked) == 2
    await clock.advance(10)
    await lab.rotator.round()
    assert len(lab.server.asked) == 2
    await lab.keys.close()


async def test_an_authority_that_goes_when_nothing_hangs_on_it_is_no_news():
    clock = FakeClock()
    lab = Lab(clock=clock)
    old, new = lab.authority, Authority(now=clock.now())
    lab.server.authority = new
    lab.put(bundles=(old.bundle(new),))
    lab.snapshot(entry("a"))
    lab.put(bundles=(old.bundle(new),))
    await lab.rotator.round()
    lab.put(bundles=(new.bundle(),))
    await lab.rotator.round()
    await clock.advance(10)
    await lab.rotator.round()
    assert len(lab.server.asked) == 1
    await lab.keys.close()


async def test_a_fleet_does_not_come_at_once():
    begun = {taint_delay(jitter / 10) for jitter in range(-10, 11)}
    assert len(begun) == 21
    assert min(begun) == 0
    assert max(begun) == SPREAD_SECONDS


async def test_what_is_clean_stays_as_it_is():
    clock = FakeClock()
    lab = Lab(clock=clock)
    old, new = lab.authority, Authority(now=clock.now())
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    lab.put(bundles=(old.bundle(new),))
    lab.server.authority = new
    lab.put(entry("b"))
    await lab.rotator.round()
    kept = lab.cache.svid("b")
    lab.put(bundles=(old.bundle(new, tainted=[old]),))
    await lab.rotator.round()
    await clock.advance(SPREAD_SECONDS)
    await lab.rotator.round()
    assert issuer_of(lab, "a") == authority_id(new.der)
    assert lab.cache.svid("b") is kept
    await lab.keys.close()


async def test_without_another_authority_nothing_is_asked_for():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    lab.put(bundles=(lab.authority.bundle(tainted=[lab.authority]),))
    await lab.rotator.round()
    await clock.advance(10)
    await lab.rotator.round()
    assert lab.server.asked == ["a"]
    await lab.keys.close()


async def test_an_svid_below_an_intermediate_of_a_tainted_root_is_replaced_too():
    clock = FakeClock()
    lab = Lab(clock=clock)
    root, middle = lab.authority, Authority(now=clock.now())
    below = certificate_below(root, middle)
    issue = lab.server._one
    lab.server._one = lambda entry_id, csr: Issued(chain=(*issue(entry_id, csr).chain, below))  # type: ignore[method-assign]
    lab.server.authority = middle
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    held = lab.cache.svid("a")
    assert held is not None
    assert held.issuer_ids == (authority_id(middle.der), authority_id(root.der))
    new = Authority(now=clock.now())
    lab.put(bundles=(root.bundle(new, tainted=[root]),))
    lab.server.authority, lab.server._one = new, issue  # type: ignore[method-assign]
    await lab.rotator.round()
    await clock.advance(SPREAD_SECONDS)
    await lab.rotator.round()
    assert issuer_of(lab, "a") == authority_id(new.der)
    await lab.keys.close()


async def test_what_nobody_uses_is_dropped_instead_of_served_to_the_next_who_comes():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lazy = entry("lazy", disable_x509_svid_prefetch=True)
    lab.snapshot(lazy)
    subscription = lab.cache.subscribe(lazy.selectors, needs_svid=True)
    await lab.rotator.round()
    lab.cache.unsubscribe(subscription)
    assert lab.cache.svid("lazy") is not None
    new = Authority(now=clock.now())
    lab.put(bundles=(lab.authority.bundle(new, tainted=[lab.authority]),))
    await lab.rotator.round()
    assert lab.cache.svid("lazy") is None
    await lab.keys.close()


async def test_a_taint_that_comes_after_a_push_of_something_else_is_seen():
    """The watch goes by the bundle, not by what a push was about."""
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    new = Authority(now=clock.now())
    tainted = lab.authority.bundle(new, tainted=[lab.authority])
    lab.put(entry("b"), bundles=(tainted,))
    lab.server.authority = new
    await lab.rotator.round()
    await clock.advance(SPREAD_SECONDS)
    await lab.rotator.round()
    assert {issuer_of(lab, "a"), issuer_of(lab, "b")} == {authority_id(new.der)}
    await lab.keys.close()


def tainted_keys(bundle: TrustBundle, *kids: str) -> TrustBundle:
    keys = tuple(replace(key, tainted=key.key_id in kids) for key in bundle.jwt_authorities)
    return replace(bundle, jwt_authorities=keys)


async def test_tokens_of_a_tainted_key_are_dropped_at_once_and_others_stay():
    lab = Lab(clock=FakeClock())
    lab.snapshot(entry("a"))
    old, new = lab.authority, Authority(now=lab.clock.now())
    follow = follow_with(lab.rotator, lab.jwts, TD)
    await lab.jwts.get(entry("a"), ["one"])
    lab.server.authority = new
    await lab.jwts.get(entry("a"), ["two"])
    assert len(lab.jwts) == 2
    bundle = tainted_keys(old.bundle(new), old.kid)
    follow(Change(token=ResumeToken("e", 2), bundles=(bundle,)))
    assert len(lab.jwts) == 1
    assert key_id(await lab.jwts.get(entry("a"), ["one"])) == new.kid
    assert len(lab.server.jwts_asked) == 3
    await lab.keys.close()


async def test_a_token_that_was_under_way_when_its_key_was_tainted_is_not_kept():
    lab = Lab(clock=FakeClock())
    lab.snapshot(entry("a"))
    old, new = lab.authority, Authority(now=lab.clock.now())
    issue = lab.server.new_jwt_svid

    async def slowly(entry_id: str, audience: list[str]) -> JwtIssued:
        issued = await issue(entry_id, audience)
        lab.jwts.trust(frozenset({new.kid}))
        return issued

    lab.server.new_jwt_svid = slowly  # type: ignore[method-assign,assignment]
    assert key_id(await lab.jwts.get(entry("a"), ["one"])) == old.kid
    assert len(lab.jwts) == 0
    await lab.keys.close()


async def test_a_rotation_that_is_due_anyhow_does_not_wait_for_the_taint():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.rotator._taints._jitter = lambda: 1.0
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    svid = lab.cache.svid("a")
    assert svid is not None
    new = Authority(now=clock.now())
    lab.server.authority = new
    lab.put(bundles=(lab.authority.bundle(new, tainted=[lab.authority]),))
    clock.jump((svid.rotate_at - clock.now()) / timedelta(seconds=1))
    await lab.rotator.round()
    assert issuer_of(lab, "a") == authority_id(new.der)
    await lab.keys.close()
