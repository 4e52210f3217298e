"""The keys of one foreign issuer (RFC 7517), found by discovery or at a configured address, and kept.

A fetch is caused by a key id that is not known or by age. It is one at a time for all callers, there is a shortest time
between two of them whoever asks, and an id that a fresh set does not hold is remembered as unknown for a while. Keys
outlive an outage of their issuer, though not for ever; what an issuer withdrew goes with the next fetch.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from attestor.node.foreign_jwt import MAX_KEY_ID_CHARACTERS, IssuerKey
from ca.errors import BurgeeError, Unavailable
from ca.identity import jwk, jws, strict_json
from ca.identity.text import quote
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.elsewhere import elsewhere
from ca.runtime.https import HttpClient

FRESH_SECONDS = 600.0
"""Older keys are fetched anew when one of them is asked for."""
KEPT_SECONDS = 24 * 3600.0
"""So long keys are good while their issuer cannot be asked."""
SHORTEST_INTERVAL_SECONDS = 10.0
AFTER_FAILURE_SECONDS = 30.0
"""From the end of one fetch to the next, whatever causes it."""
UNKNOWN_SECONDS = 60.0
"""So long an id that the issuer's keys do not have is not looked for again."""
FETCH_SECONDS = 10.0
STALE_WAIT_SECONDS = 2.0
"""Who has a key, if an old one, waits no longer for a newer set."""

MAX_UNKNOWN = 1000
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 100

Connect = Callable[[str, str], HttpClient]
"""(origin, what it is for messages) → a client for that origin."""

logger = log.get("attestor.node.jwks")


class Jwks:
    """Implements `attestor.node.foreign_jwt.KeySource`."""

    def __init__(
        self,
        issuer: str,
        *,
        clock: Clock,
        jwks_uri: str | None = None,
        context: ssl.SSLContext | None = None,
        connect: Connect | None = None,
    ) -> None:
        """With `jwks_uri` nobody is asked where the keys are. `context` is for both addresses. Raises ValueError."""
        self._issuer = issuer
        self._location = https_url(issuer, "issuer", query=False)
        self._jwks = None if jwks_uri is None else https_url(jwks_uri, "jwks_uri")
        self._clock = clock
        self._connect = connect or (lambda origin, what: HttpClient(origin, context=context, source=what))
        self._clients: dict[str, HttpClient] = {}
        self._keys: Mapping[str, Sequence[IssuerKey]] = {}
        self._fetched_at: float | None = None
        self._sets = 0
        self._next_at = float("-inf")
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._flight: asyncio.Task[None] | None = None
        self.fetches = 0
        """Attempts so far, failed ones included."""
        self.trouble = ""
        """What the last attempt met; empty when it went well."""

    async def keys(self, key_id: str) -> Sequence[IssuerKey]:
        """All of the issuer's keys of that id. Raises Unavailable TOKEN_ISSUER_UNAVAILABLE."""
        held, age = key_id in self._keys, self._age()
        if held and age <= FRESH_SECONDS:
            return self._keys[key_id]
        if not held and self._known_unknown(key_id):
            return ()
        before = self._sets
        await self._refresh(STALE_WAIT_SECONDS if held and age <= KEPT_SECONDS else None)
        if self._age() > KEPT_SECONDS:
            raise self._unavailable("keys of the token's issuer cannot be had")
        if key_id in self._keys:
            return self._keys[key_id]
        if self._sets == before:  # whether its issuer has that key by now is not known
            raise self._unavailable("the token's key is new here, and its issuer cannot be asked just now")
        self._remember_unknown(key_id)
        return ()

    async def look(self) -> int:
        """Asks now, if that is allowed, and tells how many key ids are known; `trouble` says what went wrong."""
        await self._refresh(None)
        return len(self._keys)

    def _known_unknown(self, key_id: str) -> bool:
        return self._unknown.get(key_id, 0.0) > self._clock.monotonic()

    def _remember_unknown(self, key_id: str) -> None:
        self._unknown[key_id] = self._clock.monotonic() + UNKNOWN_SECONDS
        self._unknown.move_to_end(key_id)
        while len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock.monotonic() - self._fetched_at

    def _wait(self) -> float:
        """Seconds until the next fetch is allowed."""
        return max(0.0, self._next_at - self._clock.monotonic())

    async def _refresh(self, seconds: float | None) -> None:
        """One fetch for all who wait, if one is allowed now. A caller that leaves does not end it for the others."""
        if self._flight is None and self._wait() > 0:
            return
        async with elsewhere():
            if self._flight is None:
                self._flight = asyncio.create_task(self._fetch())
            await asyncio.wait({self._flight}, timeout=seconds)

    async def _fetch(self) -> None:
        """Raises nothing: what was there stays."""
        self.fetches += 1
        pause = AFTER_FAILURE_SECONDS
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                where = self._jwks or await self._discover()
                self._keys = parse_key_set(await self._get(where, "its keys"))
            self._fetched_at, pause = self._clock.monotonic(), SHORTEST_INTERVAL_SECONDS
            self._sets += 1
            self.trouble = ""
            self._unknown.clear()
        except (BurgeeError, ValueError, TimeoutError) as error:
            self.trouble = error.detail if isinstance(error, BurgeeError) else str(error) or "no answer in time"
            logger.warning(
                "keys of an issuer not fetched",
                issuer=self._issuer,
                reason="TOKEN_ISSUER_UNAVAILABLE",
                detail=self.trouble,
            )
        finally:
            self._next_at = self._clock.monotonic() + pause
            self._flight = None

    async def _discover(self) -> SplitResult:
        """OpenID Connect Discovery §4. What it names must be on the issuer's own host (§7.1: mix-up)."""
        path = self._location.path.rstrip("/") + "/.well-known/openid-configuration"
        document = await self._get(self._location._replace(path=path), "its configuration")
        if document.get("issuer") != self._issuer:  # §4.3
            raise ValueError(f"the configuration is that of the issuer {quote(str(document.get('issuer')))}")
        where = https_url(document.get("jwks_uri"), "jwks_uri")
        if _origin(where) != _origin(self._location):
            raise ValueError(
                f"its keys are said to be at {quote(_origin(where))}, another host: configure `jwks_uri` to allow that"
            )
        return where

    async def _get(self, url: SplitResult, what: str) -> Mapping[str, Any]:
        origin = _origin(url)
        client = self._clients.get(origin)
        if client is None:
            client = self._clients[origin] = self._connect(origin, f"issuer {self._issuer}")
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        answer = await client.request("GET", path, headers={"Accept": "application/json"})
        if answer.status != 200:
            raise ValueError(f"{what}: it answered {answer.status}")
        document = strict_json.loads(answer.body, max_bytes=MAX_DOCUMENT_BYTES)
        if not isinstance(document, dict):
            raise ValueError(f"{what}: no JSON object")
        return document

    def _unavailable(self, detail: str) -> Unavailable:
        return Unavailable(
            detail, reason="TOKEN_ISSUER_UNAVAILABLE", hint="try again", retry_after_seconds=max(1.0, self._wait())
        )


def https_url(text: object, what: str, *, query: bool = True) -> SplitResult:
    """Raises ValueError for anything but a plain https address."""
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"`{what}` is no https address")
    url = urlsplit(text)
    if url.scheme != "https" or not url.hostname or url.fragment or "@" in url.netloc or (url.query and not query):
        raise ValueError(f"`{what}` is no https address, or one with a user, a fragment or a query")
    _ = url.port  # raises ValueError for what is none
    return url


def _origin(url: SplitResult) -> str:
    host = url.hostname or ""
    return f"https://{f'[{host}]' if ':' in host else host}:{url.port or 443}"


def parse_key_set(document: Mapping[str, Any]) -> dict[str, tuple[IssuerKey, ...]]:
    """Key id → keys that can verify signatures. Keys of other kinds are passed over. Raises ValueError for what is no
    key set (RFC 7517 §5)."""
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f"its keys: no list of at most {MAX_KEYS} keys")
    found: dict[str, tuple[IssuerKey, ...]] = {}
    for item in listed:
        key = _key(item)
        if key is not None:
            found[key.key_id] = (*found.get(key.key_id, ()), key)
    return found


def _key(item: object) -> IssuerKey | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig":  # RFC 7517 §4.2
        return None
    operations, key_id, algorithm = item.get("key_ops", ["verify"]), item.get("kid"), item.get("alg")
    if not isinstance(operations, list) or "verify" not in operations:  # RFC 7517 §4.3
        return None
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARACTERS:
        return None
    if algorithm is not None and not (isinstance(algorithm, str) and algorithm in jws.ALGORITHMS):
        return None
    try:
        key = jwk.load_public_key(jwk.parse_signing_key(item))
    except (ValueError, BurgeeError):  # one that we do not know; others of the set may do
        return None
    return IssuerKey(key_id=key_id, key=key, algorithm=algorithm)
