"""ValidateJWTSVID over a real socket: every defect of a token that SPIRE's agent was recorded to refuse."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ca.identity import base64url
from tests.sds.lab import Authority, Lab, entry, refused
from tests.support.workload_client import WorkloadClient

Pieces = tuple[dict[str, Any], dict[str, Any]]
"""What differs from a good token's claims and header; None takes a field away."""

DEFECTS: dict[str, Pieces] = {
    "a null key id": ({}, {"kid": None}),
    "an unknown key id": ({}, {"kid": "nope"}),
    "an unknown trust domain": ({"sub": "spiffe://unknown.org/x"}, {}),
    "a subject that is no SPIFFE ID": ({"sub": "nope"}, {}),
    "no subject": ({"sub": None}, {}),
    "no end": ({"exp": None}, {}),
    "ended an hour ago": ({"exp": -3600}, {}),
    "begins in an hour": ({"nbf": 3600}, {}),
    "issued in an hour": ({"iat": 3600}, {}),
    "no audience": ({"aud": None}, {}),
    "another audience": ({"aud": ["other"]}, {}),
    "HS256": ({}, {"alg": "HS256"}),
    "no algorithm": ({}, {"alg": "none"}),
}


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab() as lab:
        lab.snapshot(entry("a"))
        yield lab


def token(signer: Authority, claims: dict[str, Any], header: dict[str, Any]) -> str:
    """Times are seconds from now."""
    now = int(time.time())
    times = {name: now + claims[name] for name in ("exp", "nbf", "iat") if claims.get(name) is not None}
    good = {"sub": "spiffe://example.org/a", "aud": ["x"], "exp": now + 300, "iat": now}
    made = {name: value for name, value in {**good, **claims, **times}.items() if value is not None}
    return signer.token(made, **header)


async def test_the_good_one(lab: Lab) -> None:
    async with lab.client() as client:
        answer = await client.validate("x", token(lab.authority, {}, {}))
        assert answer.spiffe_id == "spiffe://example.org/a"


@pytest.mark.parametrize("what", DEFECTS)
async def test_a_defect_is_an_invalid_argument(lab: Lab, what: str) -> None:
    async with lab.client() as client:
        await _is_refused(client, token(lab.authority, *DEFECTS[what]))


async def test_so_is_what_is_no_token_or_signed_by_nobody_known(lab: Lab) -> None:
    good = token(lab.authority, {}, {})
    head, claims, signature = good.split(".")
    junk = base64url.encode(b"junk")
    async with lab.client() as client:
        for text in ("garbage", "a.b.c", f"{head}.{claims}", f"{head}.{claims}.", f"{head}.{claims}.{junk}"):
            await _is_refused(client, text)
        await _is_refused(client, f"{head}.{claims}.{signature[:-4]}AAAA")
        stranger = Authority()
        stranger.kid = lab.authority.kid
        await _is_refused(client, token(stranger, {}, {}))
        await client.validate("x", good)


async def _is_refused(client: WorkloadClient, text: str) -> None:
    code, said = await refused(client.validate("x", text))
    assert code == "INVALID_ARGUMENT", text
    assert said
    assert "Traceback" not in said
