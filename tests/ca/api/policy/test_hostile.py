"""What hostile clients send: an answer that says why, in bounded time, and nothing changed."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.ca.api.policy.conftest import policy
from tests.ca.api.policy.http import Client

ONE = "/authorization-policies/shop/orders"


async def raw(call: Client, data: bytes) -> bytes:
    """The head of the answer to these bytes."""
    reader, writer = await call.connect()
    writer.write(data)
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


async def forever(writer: asyncio.StreamWriter, data: bytes) -> None:
    """The gate listens a few seconds longer, so that the client hears the answer."""
    async with asyncio.timeout(60):
        while True:
            writer.write(data)
            await writer.drain()


LINES = [
    "GET /v1/policy/workloads/%ff/%fe",
    "GET /v1/policy/workloads/shop/%00",
    "GET /v1/policy/workloads/shop/../shop/x",
    "GET /v1/policy/workloads/shop//x",
    "GET /v1/policy/workloads%2fshop%2fx",
    "GET /v1/policy/workloads?limit=%ff",
    "GET /v1/policy/workloads?limit=1&limit=2&cursor=%00",
    "GET /v1/policy/workloads?limit=99999999999999999999999999",
    "GET /v1/policy/revisions/99999999999999999999999999",
    "GET /v1/policy/revisions/-1",
    "GET /v1/policy/revisions/1e3",
    "GET /v1/policy/decisions?since=99999-01-01T00:00:00Z",
    "GET /v1/policy/decisions?since=0001-01-01T00:00:00%2B14:00",
    "GET /v1/policy/decisions?until=9999-12-31T23:59:59-14:00",
    "GET /v1/policy/watch?after=18446744073709551616",
    "GET /v1/policy/watch?wait_seconds=nan",
    "GET /v1/policy/watch?wait_seconds=inf",
    "GET /v1/policy/grants/%ED%A0%80",
    "PUT /v1/policy/workloads/shop/x",
    "DELETE /v1/policy/workloads/shop/x",
    "TRACE /v1/policy/workloads",
    "OPTIONS *",
]
HEADERS = [
    b'if-match: "\xff\x80"',
    b'if-none-match: "a" \xa0',
    b"if-match: " + b'"a",' * 3000,
    b"idempotency-key: \xe9",
    b"idempotency-key: " + b"k" * 5000,
    b"accept: " + b"a/b;q=0.1," * 1500,
    b"accept: */*;q=1e400",
    b"content-type: application/json; charset=\xff",
    b"content-length: 0",
    b"last-event-id: " + b"9" * 5000,
    b"host: y",
]


async def test_odd_requests(local: Client) -> None:
    for line in LINES:
        head = await raw(local, f"{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert head.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (line, head)


async def test_odd_headers(local: Client) -> None:
    lines = (b"GET /v1/policy/watch?wait_seconds=0", b"PUT /v1/policy/workloads/shop/x", b"DELETE /v1/policy/grants/x")
    for header in HEADERS:
        for line in lines:
            head = await raw(local, line + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + header + b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (line, header, head)


async def test_bodies_without_end_and_without_length(local: Client) -> None:
    start = b"PUT /v1/policy/authorization-policies/shop/x HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    body = json.dumps(policy("x")).encode()
    chunked = b"transfer-encoding: chunked\r\n\r\n" + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    assert b" 201 " in await raw(local, start + chunked)
    mebibyte = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    assert b" 413 " in await raw(local, start + b"transfer-encoding: chunked\r\n\r\n" + mebibyte * 5 + b"0\r\n\r\n")
    _, writer = await local.connect()
    writer.write(start + b"transfer-encoding: chunked\r\n\r\n")
    with pytest.raises(ConnectionError):
        await forever(writer, mebibyte)
    expects = start + b"content-length: 99\r\nexpect: 100-continue\r\n\r\n"
    assert b" 100 " in await raw(local, expects)
    _, writer = await local.connect()
    writer.write(start + b"content-length: 99\r\n\r\n{")
    await writer.drain()
    writer.close()
    assert (await local("GET", "/authorization-policies/shop/x")).status == 200


async def test_a_hundred_thousand_rules_are_refused_in_time_and_others_go_on(local: Client) -> None:
    rules = [{"to": [{"operation": {"ports": [str(number % 65535 + 1)]}}]} for number in range(100_000)]
    begun = time.monotonic()
    writing = asyncio.create_task(local("POST", "/apply", {"changes": [{"object": policy(rules=rules)}]}))
    slowest = 0.0
    while not writing.done():
        asked = time.monotonic()
        assert (await local("GET", "/rollout")).status == 200
        slowest = max(slowest, time.monotonic() - asked)
        await asyncio.sleep(0.2)
    refused = await writing
    assert (refused.status, refused.reason) == (400, "POLICY_INVALID")
    assert refused.body["errors"][0]["code"] in ("P002", "P108")
    assert time.monotonic() - begun < 100
    assert slowest < 20
    assert (await local("GET", "/revisions")).body["items"] == []


async def test_a_bomb_of_yaml_is_no_bomb(local: Client) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    bomb = await local("PUT", ONE, raw="\n".join(lines).encode(), media="application/yaml")
    assert (bomb.status, bomb.body["errors"][0]["code"]) == (400, "P003")
    deep = await local("PUT", ONE, raw=b"a: " + b"[" * 100_000, media="application/yaml")
    assert (deep.status, deep.body["errors"][0]["code"] in ("P001", "P002")) == (400, True)
