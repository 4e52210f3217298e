"""Selectors and registration entries: SPIRE's rules as its server was seen to apply them, and our stricter ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import AlreadyExists, BurgeeError, InvalidArgument
from ca.identity.dns_name import check_dns_name
from ca.identity.entry import RegistrationEntry, validate_entry
from ca.identity.selector import Selector, program_alone
from ca.identity.spiffe_id import SpiffeId, TrustDomain

TD = TrustDomain("example.org")
GOOD = RegistrationEntry(
    id="my-own-id.1_x",
    spiffe_id=SpiffeId.of(TD, "/w/full"),
    parent_id=SpiffeId.of(TD, "/spire/agent/join_token/x"),
    selectors=frozenset({Selector("unix", "uid:1000"), Selector("unix", "gid:7")}),
)
FOREIGN = TrustDomain("foreign.org")

ACCEPTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "no id yet": {"id": ""},
    "id of 255 characters": {"id": "x" * 255},
    "all fields": {
        "x509_svid_ttl_seconds": 1200,
        "jwt_svid_ttl_seconds": 60,
        "dns_names": ("web.example.org", "WEB2.example.org", "*.wild.example.org"),
        "hint": "internal",
    },
    "parent is the server (a node alias)": {"parent_id": SpiffeId.of(TD, "/spire/server")},
    "parent below /spire": {"parent_id": SpiffeId.of(TD, "/spire/xyz")},
    "parent is a workload": {"parent_id": SpiffeId.of(TD, "/w/plain")},
    "largest ttl": {"x509_svid_ttl_seconds": 2**31 - 1},
    "underscore in a dns name": {"dns_names": ("under_score.example",)},
    "overlapping wildcards": {"dns_names": ("*.x.example", "*.example", "a.x.example")},
    "federates with itself": {"federates_with": (TD,)},
    "hint of 1024 bytes": {"hint": "x" * 1024},
    "admin and downstream": {"admin": True, "downstream": True},
    "store_svid with one type": {"store_svid": True},
    "path that only begins like the reserved one": {"spiffe_id": SpiffeId.of(TD, "/spirex")},
    "id of 2048 bytes": {"spiffe_id": SpiffeId.of(TD, "/" + "a" * (2048 - 21))},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "id with bad characters": ({"id": "bad id!"}, "ENTRY_ID_CHARACTERS"),
    "id with a line feed": ({"id": "a\n"}, "ENTRY_ID_CHARACTERS"),
    "id of 256 characters": ({"id": "x" * 256}, "ENTRY_ID_TOO_LONG"),
    "no selectors": ({"selectors": frozenset()}, "SELECTORS_EMPTY"),
    "store_svid with two selector types": (
        {"store_svid": True, "selectors": frozenset({Selector("a", "1"), Selector("b", "2")})},
        "SELECTORS_MIXED_FOR_STORE",
    ),
    "foreign spiffe id": ({"spiffe_id": SpiffeId.of(FOREIGN, "/e/1")}, "SPIFFE_ID_FOREIGN"),
    "foreign parent": ({"parent_id": SpiffeId.of(FOREIGN, "/p")}, "PARENT_ID_FOREIGN"),
    "spiffe id is the trust domain's": ({"spiffe_id": TD.id}, "SPIFFE_ID_NO_PATH"),
    "parent is the trust domain": ({"parent_id": TD.id}, "PARENT_ID_NO_PATH"),
    "spiffe id is the server's": ({"spiffe_id": SpiffeId.of(TD, "/spire/server")}, "SPIFFE_ID_RESERVED"),
    "spiffe id below /spire/agent": ({"spiffe_id": SpiffeId.of(TD, "/spire/agent/foo")}, "SPIFFE_ID_RESERVED"),
    "spiffe id below /spire": ({"spiffe_id": SpiffeId.of(TD, "/spire/xyz")}, "SPIFFE_ID_RESERVED"),
    "spiffe id is /spire": ({"spiffe_id": SpiffeId.of(TD, "/spire")}, "SPIFFE_ID_RESERVED"),
    "negative x509 ttl": ({"x509_svid_ttl_seconds": -1}, "TTL_OUT_OF_RANGE"),
    "negative jwt ttl": ({"jwt_svid_ttl_seconds": -1}, "TTL_OUT_OF_RANGE"),
    "ttl beyond int32": ({"x509_svid_ttl_seconds": 2**31}, "TTL_OUT_OF_RANGE"),
    "hint of 1025 bytes": ({"hint": "x" * 1025}, "HINT_TOO_LONG"),
    "hint of 1025 bytes in 342 characters": ({"hint": "€" * 341 + "xx" + "x"}, "HINT_TOO_LONG"),
    "one bad dns name among good ones": ({"dns_names": ("a.example", "a..b")}, "DNS_NAME"),
}

GOOD_DNS_NAMES = [
    "a",
    "a.b",
    "A-b.example",
    "1.2.3.4",
    "_srv._tcp.example",
    "x" * 63,
    "*.a",
    "*.x.example",
    "xn--bcher-kva.a",
]
BAD_DNS_NAMES = {
    "empty": "",
    "blank": " ",
    "ends in a hyphen": "abc-",
    "begins with a hyphen": "-abc",
    "empty label": "a..b",
    "leading dot": ".a",
    "trailing dot": "a.",
    "inner wildcard": "x.*.y",
    "partial wildcard": "x*.y",
    "bare wildcard": "*",
    "wildcard of nothing": "*.",
    "two wildcards": "*.*.a",
    "unicode": "bücher.example",
    "space": "a b",
    "line feed": "a\n",
    "slash": "a/b",
    "label of 64": "x" * 64,
    "254 characters": ".".join(["x" * 63] * 3 + ["x" * 62]),
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(changes: dict[str, Any]) -> None:
    validate_entry(dataclasses.replace(GOOD, **changes), trust_domain=TD)


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate_entry(dataclasses.replace(GOOD, **changes), trust_domain=TD)
    assert caught.value.reason == reason


def test_a_dns_name_given_twice_is_answered_as_spire_does() -> None:
    with pytest.raises(AlreadyExists) as caught:
        validate_entry(dataclasses.replace(GOOD, dns_names=("d.example", "e.example", "d.example")), trust_domain=TD)
    assert caught.value.reason == "DNS_NAME_DUPLICATE"
    assert "`d.example`" in caught.value.detail


@pytest.mark.parametrize("name", GOOD_DNS_NAMES)
def test_dns_names_accepted(name: str) -> None:
    check_dns_name(name)


@pytest.mark.parametrize("name", BAD_DNS_NAMES.values(), ids=BAD_DNS_NAMES.keys())
def test_dns_names_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid DNS name"):
        check_dns_name(name)


def test_selector_text() -> None:
    selector = Selector.parse("unix:path:/bin/a:b")
    assert (selector.type, selector.value) == ("unix", "path:/bin/a:b")
    assert str(selector) == "unix:path:/bin/a:b"
    assert Selector("a", "2") < Selector("b", "1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unix", "SELECTOR_NO_COLON"),
        ("", "SELECTOR_NO_COLON"),
        (":v", "SELECTOR_TYPE_MISSING"),
        ("t:", "SELECTOR_VALUE_MISSING"),
    ],
)
def test_selector_defects(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Selector.parse(text)
    assert caught.value.reason == reason


def test_selector_type_with_a_colon() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Selector("a:b", "v")
    assert caught.value.reason == "SELECTOR_TYPE_COLON"


@given(st.text(), st.text(), st.text(), st.integers(), st.lists(st.text(), max_size=3))
def test_any_entry_is_refused_or_within_the_limits(
    entry_id: str, hint: str, selector: str, ttl: int, names: list[str]
) -> None:
    try:
        entry = dataclasses.replace(
            GOOD,
            id=entry_id,
            hint=hint,
            selectors=frozenset({Selector.parse(selector)}),
            x509_svid_ttl_seconds=ttl,
            dns_names=tuple(names),
        )
        validate_entry(entry, trust_domain=TD)
    except BurgeeError:
        return
    assert len(entry.hint.encode("utf-8", "surrogatepass")) <= 1024
    assert len(entry.id) <= 255
    assert 0 <= ttl < 2**31


@pytest.mark.parametrize(
    ("selectors", "alone"),
    [
        (["unix:path:/usr/bin/web"], True),
        (["unix:sha256:00ff"], True),
        (["unix:path:/usr/bin/web", "unix:sha256:00ff"], True),
        (["unix:path:/usr/bin/web", "unix:uid:1000"], False),
        (["unix:sha256:00ff", "unix:supplementary_gid:7"], False),
        (["unix:path:/usr/bin/web", "docker:label:a:b"], False),
        (["other:path:/usr/bin/web"], False),
        (["unix:uid:1000"], False),
        ([], False),
    ],
)
def test_which_selectors_tell_of_a_program_and_of_nobody(selectors: list[str], alone: bool) -> None:
    assert program_alone(Selector.parse(text) for text in selectors) is alone
