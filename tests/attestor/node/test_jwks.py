"""The keys of an issuer: how often it is asked, what it is believed, and what happens while it is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestor.node import jwks
from attestor.node.jwks import Jwks, https_url, parse_key_set
from ca.errors import Unavailable
from tests.support.clock import FakeClock
from tests.support.oidc_issuer import DISCOVERY, JWKS, OidcIssuer, jwk_of


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def issuer() -> Iterator[OidcIssuer]:
    with OidcIssuer() as running:
        yield running


def cache(issuer: OidcIssuer, clock: FakeClock, **changes: Any) -> Jwks:
    return Jwks(issuer.url, clock=clock, **{"context": issuer.context(), **changes})


async def ids(keys: Jwks, key_id: str) -> list[str]:
    return [key.key_id for key in await keys.keys(key_id)]


async def gone(keys: Jwks, key_id: str) -> bool:
    try:
        return not await ids(keys, key_id)
    except Unavailable:  # gone with the set that came a moment ago
        return True


async def unavailable(keys: Jwks, key_id: str = "key-1") -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        await keys.keys(key_id)
    assert caught.value.reason == "TOKEN_ISSUER_UNAVAILABLE"
    assert caught.value.retry_after_seconds
    return caught.value


async def test_they_are_found_by_discovery_and_fetched_once_for_all(issuer: OidcIssuer, clock: FakeClock) -> None:
    keys = cache(issuer, clock)
    issuer.delay_seconds = 0.05
    found = await asyncio.gather(*(ids(keys, "key-1") for _ in range(50)))
    assert found == [["key-1"]] * 50
    assert issuer.asked == {DISCOVERY: 1, JWKS: 1}


async def test_the_path_of_an_issuer_stands_before_the_well_known_one(clock: FakeClock) -> None:
    with OidcIssuer(path="/realms/a") as issuer:
        assert await ids(cache(issuer, clock), "key-1") == ["key-1"]
        assert issuer.asked == {"/realms/a" + DISCOVERY: 1, "/realms/a" + JWKS: 1}


async def test_a_configured_address_needs_no_discovery(issuer: OidcIssuer, clock: FakeClock) -> None:
    assert await ids(cache(issuer, clock, jwks_uri=issuer.url + JWKS), "key-1") == ["key-1"]
    assert issuer.asked == {JWKS: 1}


async def test_a_flood_of_unknown_ids_makes_few_fetches(issuer: OidcIssuer, clock: FakeClock) -> None:
    keys = cache(issuer, clock)
    await ids(keys, "key-1")
    for number in range(200):
        try:
            assert await ids(keys, f"unknown-{number}") == []
        except Unavailable:
            pass
        await clock.advance(0.3)
    assert issuer.fetches <= 1 + 60 / jwks.SHORTEST_INTERVAL_SECONDS
    assert await ids(keys, "key-1") == ["key-1"]


async def test_an_unknown_id_is_remembered_as_such(issuer: OidcIssuer, clock: FakeClock) -> None:
    keys = cache(issuer, clock)
    assert await ids(keys, "other") == []
    for _ in range(5):
        await clock.advance(jwks.SHORTEST_INTERVAL_SECONDS)
        assert await ids(keys, "other") == []
    assert issuer.fetches == 1
    await clock.advance(jwks.UNKNOWN_SECONDS)
    assert await ids(keys, "other") == []
    assert issuer.fetches == 2


async def test_a_new_key_is_found_and_an_old_one_goes(issuer: OidcIssuer, clock: FakeClock) -> None:
    keys = cache(issuer, clock)
    await ids(keys, "key-1")
    issuer.rotate("key-2")
    error = await unavailable(keys, "key-2")  # asked a moment ago
    assert error.retry_after_seconds is not None
    await clock.advance(error.retry_after_seconds)
    assert await ids(keys, "key-2") == ["key-2"]
    await unavailable(keys, "key-1")
    await clock.advance(jwks.SHORTEST_INTERVAL_SECONDS)
    assert await ids(keys, "key-1") == []


async def test_a_withdrawn_key_goes_by_itself(issuer: OidcIssuer, clock: FakeClock) -> None:
    keys = cache(issuer, clock)
    await ids(keys, "key-1")
    issuer.rotate("key-2")
    await clock.advance(jwks.FRESH_SECONDS - 1)
    assert await ids(keys, "key-1") == ["key-1"]
    await clock.advance(2)
    assert await ids(keys, "key-1") == []


async def test_keys_outlive_an_outage_though_not_for_ever(issuer: OidcIssuer, clock: FakeClock) -> None:
    keys = cache(issuer, clock)
    await ids(keys, "key-1")
    issuer.down = True
    for _ in range(20):
        await clock.advance(jwks.KEPT_SECONDS / 21)
        assert await ids(keys, "key-1") == ["key-1"]
    await unavailable(keys, "key-2")
    await clock.advance(jwks.KEPT_SECONDS / 10)
    await unavailable(keys)
    issuer.down = False
    await unavailable(keys)  # not yet: it was asked a moment ago
    await clock.advance(jwks.AFTER_FAILURE_SECONDS)
    assert await ids(keys, "key-1") == ["key-1"]


async def test_whoever_has_an_old_key_does_not_wait_for_a_slow_issuer(
    issuer: OidcIssuer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "STALE_WAIT_SECONDS", 0.01)
    keys = cache(issuer, clock)
    await ids(keys, "key-1")
    await clock.advance(jwks.FRESH_SECONDS + 1)
    issuer.delay_seconds = 0.3
    issuer.rotate("key-2")
    assert await ids(keys, "key-1") == ["key-1"]
    async with asyncio.timeout(10):
        while not await gone(keys, "key-1"):  # noqa: ASYNC110  # what a caller sees, not an event
            await asyncio.sleep(0.02)


async def test_a_caller_that_leaves_does_not_end_the_fetch_of_the_others(issuer: OidcIssuer, clock: FakeClock) -> None:
    keys = cache(issuer, clock)
    issuer.delay_seconds = 0.1
    first, second = (asyncio.create_task(ids(keys, "key-1")) for _ in range(2))
    await asyncio.sleep(0.02)
    first.cancel()
    assert await second == ["key-1"]
    assert issuer.fetches == 1


def document(**changes: Any) -> bytes:
    return json.dumps(changes).encode()


def bad_configurations(url: str) -> list[tuple[int, bytes]]:
    port = url.rpartition(":")[2]
    return [
        (404, document(issuer=url, jwks_uri=url + JWKS)),
        (302, b""),
        (200, b"no JSON"),
        (200, b"[]"),
        (200, document(jwks_uri=url + JWKS)),
        (200, document(issuer=url + "/", jwks_uri=url + JWKS)),
        (200, document(issuer=url)),
        (200, document(issuer=url, jwks_uri=["x"])),
        (200, document(issuer=url, jwks_uri=f"https://localhost:{port}{JWKS}")),
        (200, document(issuer=url, jwks_uri=url.replace("https", "http") + JWKS)),
        (200, document(issuer=url, jwks_uri=f"https://a@127.0.0.1:{port}{JWKS}")),
        (200, f'{{"issuer": "{url}", "issuer": "{url}", "jwks_uri": "{url}{JWKS}"}}'.encode()),
        (200, b'{"issuer": "' + b"x" * jwks.MAX_DOCUMENT_BYTES + b'"}'),
    ]


async def test_what_discovery_must_not_say(issuer: OidcIssuer, clock: FakeClock) -> None:
    for answer in bad_configurations(issuer.url):
        issuer.answers[DISCOVERY] = answer
        await unavailable(cache(issuer, clock))
    assert issuer.fetches == 0
    del issuer.answers[DISCOVERY]
    assert await ids(cache(issuer, clock), "key-1")


async def test_keys_on_another_host_count_where_that_is_configured(issuer: OidcIssuer, clock: FakeClock) -> None:
    """One that proves itself and has these very keys: what is wrong is that discovery alone names it."""
    other = OidcIssuer()
    other.ca, other.keys = issuer.ca, issuer.keys
    with other:
        issuer.answers[DISCOVERY] = (200, document(issuer=issuer.url, jwks_uri=other.url + JWKS))
        keys = cache(issuer, clock)
        await unavailable(keys)
        assert "another host" in keys.trouble
        assert not other.asked
        assert await ids(cache(issuer, clock, jwks_uri=other.url + JWKS), "key-1") == ["key-1"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [], "keys": []}'])
async def test_what_is_no_key_set_leaves_what_was_there(issuer: OidcIssuer, clock: FakeClock, body: bytes) -> None:
    keys = cache(issuer, clock)
    await ids(keys, "key-1")
    issuer.answers[JWKS] = (200, body)
    await clock.advance(jwks.FRESH_SECONDS + 1)
    assert await ids(keys, "key-1") == ["key-1"]


async def test_an_issuer_that_is_not_who_it_says(issuer: OidcIssuer, clock: FakeClock) -> None:
    await unavailable(cache(issuer, clock, context=None))  # the system's roots do not vouch for it
    assert not issuer.asked


def test_only_signing_keys_that_we_know_are_taken() -> None:
    key, rsa_key = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
    good = jwk_of(key, "a")
    listed = [
        good,
        jwk_of(rsa_key, "b", alg="RS256"),
        jwk_of(key, "enc", use="enc"),
        jwk_of(key, "ops", key_ops=["sign"]),
        jwk_of(key, "alg", alg="ECDH-ES"),
        jwk_of(key, "alg-list", alg=["ES256"]),
        {**good, "kid": 7},
        {**good, "kid": "x", "x": "AAAA"},
        {**good, "kid": "y", "kty": "oct", "k": "AAAA"},
        {**good, "kid": ["z"]},
        "text",
        None,
    ]
    found = parse_key_set({"keys": listed})
    assert {key_id: [k.algorithm for k in keys] for key_id, keys in found.items()} == {"a": [None], "b": ["RS256"]}
    with pytest.raises(ValueError, match="at most"):
        parse_key_set({"keys": [good] * (jwks.MAX_KEYS + 1)})


@pytest.mark.parametrize(
    "url",
    ["", None, 7, "http://a", "https://", "https://a b", "https://u@a", "https://a#f", "https://a:99999", "https://ä"],
)
def test_what_is_no_https_address(url: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # urlsplit has its own words
        https_url(url, "issuer")
