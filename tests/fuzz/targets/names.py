"""SPIFFE IDs, trust domains, and addresses of the Workload Endpoint."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import quote_from_bytes

from ca.errors import InvalidArgument
from ca.identity.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from tests.fuzz.harness import Target, outcome, text_of

_LOWER = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"


def _fold(text: str) -> str:
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)


def slow_trust_domain(text: str) -> str | None:
    """The name that SPIFFE-ID §2.1 makes of a bare one, character by character; None where it makes none."""
    name = _fold(text)
    good = 0 < len(name) <= 255 and all(c in _LOWER + _DIGITS + "._-" for c in name)
    return name if good else None


def slow_spiffe_id(text: str) -> tuple[str, str] | None:
    """Trust domain and path as SPIFFE-ID §2 reads them, character by character; None for what is no SPIFFE ID."""
    if _fold(text[:9]) != "spiffe://" or len(text.encode("utf-8", "surrogateescape")) > 2048:
        return None
    end = text.find("/", 9)
    name, path = (text[9:], "") if end < 0 else (text[9:end], text[end:])
    domain = slow_trust_domain(name)
    if domain is None:
        return None
    for segment in path.split("/")[1:]:
        if segment in ("", ".", ".."):
            return None
        if any(c not in _LOWER + _LOWER.upper() + _DIGITS + "._-" for c in segment):
            return None
    return domain, path


def run_names(data: bytes) -> None:
    text = text_of(data)
    parsed = outcome(SpiffeId.parse, text, refusal=InvalidArgument)
    slow = slow_spiffe_id(text)
    assert (parsed is None) == (slow is None), f"{text!r} is read as {parsed} and should be {slow}"
    if parsed is not None:
        assert (parsed.trust_domain.name, parsed.path) == slow
        assert SpiffeId.parse(str(parsed)) == parsed
        assert SpiffeId.of(parsed.trust_domain, parsed.path) == parsed
    domain = outcome(TrustDomain.parse, text, refusal=InvalidArgument)
    if "://" in text:
        assert (domain is None) == (slow is None or slow[1] != "")
    else:
        assert (None if domain is None else domain.name) == slow_trust_domain(text)
    selector = outcome(Selector.parse, text, refusal=InvalidArgument)
    if selector is not None:
        assert str(selector) == text
        assert Selector.parse(str(selector)) == selector


def run_endpoint(data: bytes) -> None:
    text = text_of(data)
    endpoint = outcome(parse_endpoint, text, refusal=InvalidArgument)
    if isinstance(endpoint, UnixEndpoint):
        assert endpoint.path.startswith("/")
        assert "\0" not in endpoint.path
        assert parse_endpoint("unix://" + quote_from_bytes(os.fsencode(endpoint.path))) == endpoint
    elif isinstance(endpoint, TcpEndpoint):
        assert ipaddress.ip_address(str(endpoint.ip)) == endpoint.ip
        assert 0 < endpoint.port < 65536
        assert parse_endpoint(str(endpoint)) == endpoint


TARGETS = (
    Target(
        name="spiffe_id",
        run=run_names,
        words=(b"spiffe://", b"SPIFFE://", b"example.org", b"/..", b"/.", b"//", b"%2e", b"\xc4\xb0", b"@", b"a" * 255),
    ),
    Target(
        name="endpoint",
        run=run_endpoint,
        words=(b"unix://", b"tcp://", b"127.0.0.1:1", b"[::1]:8081", b"[::ffff:1.2.3.4]:1", b"%00", b"%2F", b"?", b"#"),
        max_bytes=512,
    ),
)
