"""Key sets of foreign issuers: from listed hosts alone, kept when the host is away, and not asked for all the time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ca.errors import Unavailable
from ca.proto.burgee import policy_pb2
from ca.service.policy import key_sets
from ca.service.policy.candidates import Concern
from ca.service.policy.refusals import PolicyInvalid
from policy.book_values import Change
from tests.ca.policy.lab import Lab, body, lab, put, url_in
from tests.support.server import eventually

GOOD = json.dumps({"keys": [{"kty": "EC", "kid": "1"}]}).encode()
CONCERNS = frozenset({Concern("spiffe://example.org/w", ("shop",))})


class Issuer:
    """What an issuer's host answers, and how often it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, GOOD, list[str]()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                self.send_response(issuer.status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", str(len(issuer.body)))
                self.end_headers()
                self.wfile.write(issuer.body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/jwks?v=1"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


def trusting(*addresses: str, name: str = "jwt") -> Change:
    rules = [{"issuer": f"https://issuer/{n}", "jwksUri": address} for n, address in enumerate(addresses)]
    return put(body(name, kind="RequestAuthentication", jwtRules=rules))


@asynccontextmanager
async def fetching(directory: Path, **policy: Any) -> AsyncIterator[Lab]:
    settings = {"jwks_hosts": ["127.0.0.1"], "jwks_plain_http": True, **policy}
    async with lab(url_in(directory), policy=settings) as made:
        running = asyncio.ensure_future(made.book.key_sets.run())
        try:
            yield made
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def sent(made: Lab) -> dict[str, str]:
    found = made.book.set_of(CONCERNS)
    assert found is not None
    return {one.issuer: one.jwks for one in policy_pb2.PolicySet.FromString(found.payload).keys}


async def test_new_keys_are_told_of_while_the_store_is_away(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()

    async def away(*_: object) -> None:
        raise Unavailable("the store is away", reason="STORE_UNAVAILABLE")

    async with fetching(tmp_path) as made:
        made.book.key_sets.on_changed(told.set)
        monkeypatch.setattr(made.store.policies, "put_key_set", away)
        await made.write(trusting(issuer.url))
        await asyncio.wait_for(told.wait(), 10)
        assert issuer.url in sent(made)


async def test_a_key_set_is_fetched_and_sent_to_who_needs_it(tmp_path: Path, issuer: Issuer) -> None:
    async with fetching(tmp_path) as made:
        await made.write(trusting(issuer.url), trusting(issuer.url, name="again"))
        await eventually(lambda: bool(sent(made)))
        assert json.loads(sent(made)[issuer.url]) == json.loads(GOOD)
        other = made.book.set_of(frozenset({Concern("spiffe://example.org/w", ("bank",))}))
        assert other is not None
        assert not policy_pb2.PolicySet.FromString(other.payload).keys
        for number in range(5):
            await made.write(trusting(issuer.url, name=f"n{number}"))
        await asyncio.sleep(0.1)
        assert issuer.asked == ["/jwks?v=1"]


async def test_a_new_key_is_pushed(tmp_path: Path, issuer: Issuer) -> None:
    async with fetching(tmp_path) as made:
        await made.write(trusting(issuer.url))
        await eventually(lambda: bool(sent(made)))
        told: list[bool] = []
        made.book.on_changed(lambda: told.append(True))
        issuer.body = GOOD.replace(b'"1"', b'"2"')
        await asyncio.sleep(0.05)
        await made.clock.advance(key_sets.REFRESH_SECONDS + 1)
        await eventually(lambda: '"2"' in sent(made)[issuer.url])
        await eventually(lambda: bool(told))


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, GOOD),
        (302, GOOD),
        (200, b"no JSON"),
        (200, b"[" * 100_000),
        (200, b'{"keys": 1}'),
        (200, b'{"keys": [1]}'),
        (200, b" " * (key_sets.MAX_BYTES + 1)),
    ],
)
async def test_a_failure_keeps_what_was_there_and_is_told(
    tmp_path: Path, issuer: Issuer, status: int, answer: bytes
) -> None:
    async with fetching(tmp_path) as made:
        await made.write(trusting(issuer.url))
        await eventually(lambda: bool(sent(made)))
        before = sent(made)
        issuer.status, issuer.body = status, answer
        await asyncio.sleep(0.05)
        await made.clock.advance(key_sets.REFRESH_SECONDS + 1)
        await eventually(lambda: made.book.key_sets.problem() is not None)
        assert sent(made) == before
        asked = len(issuer.asked)
        for number in range(3):
            await made.write(trusting(issuer.url, name=f"n{number}"))
        await asyncio.sleep(0.05)
        assert len(issuer.asked) == asked  # it failed just now


async def test_over_a_restart(tmp_path: Path, issuer: Issuer) -> None:
    async with fetching(tmp_path) as made:
        await made.write(trusting(issuer.url))
        await eventually(lambda: bool(sent(made)))
        await eventually(lambda: _kept(made))
    issuer.status = 500
    async with fetching(tmp_path) as made:
        assert issuer.url in sent(made)


async def _kept(made: Lab) -> bool:
    return bool(await made.store.policies.key_sets())


async def test_a_host_that_is_not_listed_is_not_asked(tmp_path: Path, issuer: Issuer) -> None:
    async with fetching(tmp_path) as made:
        for address in (issuer.url.replace("127.0.0.1", "localhost"), issuer.url.replace("127.0.0.1", "127.0.0.1@x")):
            with pytest.raises(PolicyInvalid) as caught:
                await made.write(trusting(address))
            assert caught.value.problems[0].code == "P204"
        await made.write(trusting(issuer.url))
        await eventually(lambda: bool(sent(made)))
    asked = len(issuer.asked)
    async with fetching(tmp_path, jwks_hosts=["elsewhere"]) as made:  # it is on the list no more
        await eventually(lambda: made.book.key_sets.problem() is not None)
        await asyncio.sleep(0.05)
    async with fetching(tmp_path, jwks_plain_http=False) as made:
        await eventually(lambda: made.book.key_sets.problem() is not None)
    assert len(issuer.asked) == asked
