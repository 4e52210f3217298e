"""SPIFFE IDs and trust domains: the standard's examples, tables of defects, every byte, and properties."""

from __future__ import annotations

import dataclasses
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain, is_agent_path, is_reserved, server_id

TD = TrustDomain("example.org")
HOST_CHARACTERS = set(string.ascii_lowercase + string.digits + ".-_")
PATH_CHARACTERS = set(string.ascii_letters + string.digits + ".-_")

STANDARD_EXAMPLES = [
    "spiffe://trust-domain-name/path",
    "spiffe://staging.example.com/payments/mysql",
    "spiffe://staging.example.com/payments/web-fe",
    "spiffe://k8s-west.example.com/ns/staging/sa/default",
    "spiffe://example.com/9eebccd2-12bf-40a6-b262-65fe0487d453",
]

KEPT_AS_THEY_ARE = [
    "spiffe://example.org",
    "spiffe://1.2.3.4/looks-like-ip",
    "spiffe://example..org/two-dots",
    "spiffe://-a.org/p",
    "spiffe://a.org./p",
    "spiffe://_x/p",
    "spiffe://./dot-domain",
    "spiffe://td/...",
    "spiffe://td/.a",
    "spiffe://td/..a",
    "spiffe://td/a.",
    "spiffe://td/Path/CASE",
]

REFUSED = {
    "empty": ("", "SPIFFE_ID_EMPTY"),
    "other scheme": ("http://td/p", "SPIFFE_ID_SCHEME"),
    "one slash": ("spiffe:/td/p", "SPIFFE_ID_SCHEME"),
    "no scheme": ("td/p", "SPIFFE_ID_SCHEME"),
    "scheme cut": ("s", "SPIFFE_ID_SCHEME"),
    "scheme with a space": (" spiffe://td/p", "SPIFFE_ID_SCHEME"),
    "long s folded by unicode": ("ſpiffe://td/p", "SPIFFE_ID_SCHEME"),
    "no trust domain": ("spiffe://", "TRUST_DOMAIN_EMPTY"),
    "no trust domain but a path": ("spiffe:///p", "TRUST_DOMAIN_EMPTY"),
    "query after path": ("spiffe://td/p?x=1", "SPIFFE_ID_QUERY"),
    "query after trust domain": ("spiffe://td?q", "SPIFFE_ID_QUERY"),
    "empty query": ("spiffe://td/p?", "SPIFFE_ID_QUERY"),
    "fragment after path": ("spiffe://td/p#f", "SPIFFE_ID_FRAGMENT"),
    "fragment after trust domain": ("spiffe://td#f", "SPIFFE_ID_FRAGMENT"),
    "user and password": ("spiffe://u:p@td/p", "SPIFFE_ID_USERINFO"),
    "user": ("spiffe://u@td/p", "SPIFFE_ID_USERINFO"),
    "port": ("spiffe://td:80/p", "SPIFFE_ID_PORT"),
    "empty port": ("spiffe://td:/p", "SPIFFE_ID_PORT"),
    "IPv6 literal": ("spiffe://[::1]/p", "SPIFFE_ID_PORT"),
    "percent in trust domain": ("spiffe://%62ad/p", "TRUST_DOMAIN_CHARACTERS"),
    "percent-encoded dot in trust domain": ("spiffe://example%2eorg/p", "TRUST_DOMAIN_CHARACTERS"),
    "kelvin sign in trust domain": ("spiffe://\u212a/p", "TRUST_DOMAIN_CHARACTERS"),
    "trust domain of 256 bytes": ("spiffe://" + "a" * 256, "TRUST_DOMAIN_TOO_LONG"),
    "percent-encoded slash in path": ("spiffe://td/foo%2Fbar", "SPIFFE_ID_PATH_CHARACTERS"),
    "percent-encoded letter in path": ("spiffe://td/%61pi", "SPIFFE_ID_PATH_CHARACTERS"),
    "empty first segment": ("spiffe://td//p", "SPIFFE_ID_PATH_EMPTY_SEGMENT"),
    "empty inner segment": ("spiffe://td/a//b", "SPIFFE_ID_PATH_EMPTY_SEGMENT"),
    "dot segment": ("spiffe://td/./p", "SPIFFE_ID_PATH_DOT_SEGMENT"),
    "dot segment last": ("spiffe://td/p/.", "SPIFFE_ID_PATH_DOT_SEGMENT"),
    "dot dot segment": ("spiffe://td/../p", "SPIFFE_ID_PATH_DOT_SEGMENT"),
    "dot dot segment last": ("spiffe://td/p/..", "SPIFFE_ID_PATH_DOT_SEGMENT"),
    "root path": ("spiffe://td/", "SPIFFE_ID_PATH_TRAILING_SLASH"),
    "trailing slash": ("spiffe://td/p/", "SPIFFE_ID_PATH_TRAILING_SLASH"),
    "line feed after path": ("spiffe://td/p\n", "SPIFFE_ID_PATH_CHARACTERS"),
    "line feed after trust domain": ("spiffe://td\n", "TRUST_DOMAIN_CHARACTERS"),
    "dot dot and a line feed": ("spiffe://td/..\n", "SPIFFE_ID_PATH_CHARACTERS"),
    "umlaut in path": ("spiffe://td/ü", "SPIFFE_ID_PATH_CHARACTERS"),
    "arabic digit in path": ("spiffe://td/\u0661", "SPIFFE_ID_PATH_CHARACTERS"),
    "2049 bytes": ("spiffe://td/" + "a" * (2049 - 12), "SPIFFE_ID_TOO_LONG"),
}


@pytest.mark.parametrize("text", STANDARD_EXAMPLES + KEPT_AS_THEY_ARE)
def test_valid_ids_are_kept_verbatim(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_defects_are_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        SpiffeId.parse(text)
    assert caught.value.reason == reason
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 400


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_every_place(byte: int) -> None:
    """Allowed characters pass and all others fail: in the middle and at the end, of trust domain and path."""
    c = chr(byte)
    for text, allowed in (
        (f"spiffe://a{c}a/p", HOST_CHARACTERS | set(string.ascii_uppercase) | {"/"}),
        (f"spiffe://a{c}", HOST_CHARACTERS | set(string.ascii_uppercase)),
        (f"spiffe://td/a{c}a", PATH_CHARACTERS | {"/"}),
        (f"spiffe://td/a{c}", PATH_CHARACTERS),
    ):
        if c in allowed:
            SpiffeId.parse(text)
        else:
            with pytest.raises(InvalidArgument):
                SpiffeId.parse(text)


@pytest.mark.parametrize("text", ["spiffe://EXAMPLE.org/a", "SPIFFE://example.org/a", "Spiffe://Example.Org/a"])
def test_scheme_and_trust_domain_fold_and_the_path_does_not(text: str) -> None:
    assert SpiffeId.parse(text) == SpiffeId.parse("spiffe://example.org/a")
    assert SpiffeId.parse("spiffe://example.org/A") != SpiffeId.parse("spiffe://example.org/a")


def test_the_longest_allowed() -> None:
    longest = "spiffe://td/" + "a" * (2048 - 12)
    assert str(SpiffeId.parse(longest)) == longest
    assert TrustDomain.parse("a" * 255).name == "a" * 255
    full = SpiffeId.parse("spiffe://" + "t" * 255 + "/" + "p" * (2048 - 265))
    assert len(str(full)) == 2048


def test_trust_domain_from_name_or_id() -> None:
    assert TrustDomain.parse("Example.org") == TrustDomain.parse("spiffe://example.ORG") == TD
    assert str(TD) == "example.org"
    assert str(TD.id) == "spiffe://example.org"
    assert TD.id.is_trust_domain_id
    for text, reason in (
        ("", "TRUST_DOMAIN_EMPTY"),
        ("spiffe://example.org/p", "TRUST_DOMAIN_HAS_PATH"),
        ("http://example.org", "SPIFFE_ID_SCHEME"),
        ("a/b", "TRUST_DOMAIN_CHARACTERS"),
        ("\u212a", "TRUST_DOMAIN_CHARACTERS"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            TrustDomain.parse(text)
        assert caught.value.reason == reason


def test_invalid_values_cannot_be_made_by_hand() -> None:
    with pytest.raises(InvalidArgument):
        TrustDomain("Example.org")
    with pytest.raises(InvalidArgument) as caught:
        SpiffeId.of(TD, "no-slash")
    assert caught.value.reason == "SPIFFE_ID_PATH_SLASH"
    with pytest.raises(InvalidArgument):
        dataclasses.replace(SpiffeId.of(TD, "/a"), path="/a/../b")


def test_values_are_frozen_and_no_strings() -> None:
    identity = SpiffeId.parse("spiffe://example.org/a")
    assert identity != "spiffe://example.org/a"
    assert TD != "example.org"
    assert {identity, SpiffeId.of(TD, "/a")} == {identity}
    with pytest.raises(dataclasses.FrozenInstanceError):
        identity.path = "/b"  # type: ignore[misc]
    assert not hasattr(identity, "__dict__")


def test_reserved_paths() -> None:
    assert str(server_id(TD)) == "spiffe://example.org/spire/server"
    assert [is_reserved(p) for p in ("/spire", "/spire/x", "/spire/agent/a", "/spirex", "/a/spire", "")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert is_agent_path("/spire/agent/join_token/x")
    assert not is_agent_path("/spire/agents/x")


@given(st.text())
def test_any_text_is_refused_or_survives_a_round_trip(text: str) -> None:
    for candidate in (text, "spiffe://" + text, "spiffe://td/" + text):
        try:
            identity = SpiffeId.parse(candidate)
        except InvalidArgument:
            continue
        assert SpiffeId.parse(str(identity)) == identity
        assert str(identity).startswith("spiffe://")


SEGMENTS = st.text(alphabet=sorted(PATH_CHARACTERS), min_size=1).filter(lambda s: s not in (".", ".."))


@given(st.text(alphabet=sorted(HOST_CHARACTERS), min_size=1, max_size=255), st.lists(SEGMENTS, max_size=5))
def test_everything_the_grammar_allows_is_accepted(name: str, segments: list[str]) -> None:
    text = f"spiffe://{name}" + "".join(f"/{segment}" for segment in segments)
    if len(text) <= 2048:
        assert str(SpiffeId.parse(text)) == text
