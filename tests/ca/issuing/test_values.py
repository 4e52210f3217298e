"""Serials, lifetimes, names, times and profiles."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import FailedPrecondition, Internal, InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing import der, names
from ca.issuing.lifetime import Cap, plan_lifetime
from ca.issuing.names import Attribute, decode_name, encode_name
from ca.issuing.profile import AGENT, SERVER, WORKLOAD, LeafProfile, check_identity, minted
from ca.issuing.serial import new_jti, new_kid, new_serial
from ca.issuing.times import decode_validity, encode_time, encode_validity
from tests.ca.issuing.support import NOW, TD


@given(st.binary(min_size=16, max_size=16).filter(any))
def test_serials_are_positive_and_fit_twenty_octets(random: bytes) -> None:
    serial = new_serial(random)
    assert 0 < serial < 2**128
    assert len(der.integer(serial)) - 2 <= 17
    assert serial.to_bytes(16, "big") == random


@pytest.mark.parametrize("random", [b"", bytes(8), bytes(16), bytes(17)])
def test_too_little_randomness_is_refused(random: bytes) -> None:
    with pytest.raises(Internal):
        new_serial(random)


@given(st.binary(min_size=32, max_size=32))
def test_kids_are_32_alphanumerics(random: bytes) -> None:
    kid = new_kid(random)
    assert len(kid) == 32
    assert kid.isascii()
    assert kid.isalnum()


def test_kids_use_all_their_randomness() -> None:
    kids = {new_kid(bytes(31) + bytes([n])) for n in range(256)} | {new_kid(bytes([n]) + bytes(31)) for n in range(256)}
    assert len(kids) == 511
    with pytest.raises(Internal):
        new_kid(bytes(16))


def test_jtis_are_22_characters_of_base64url() -> None:
    assert new_jti(b"\xff" * 16) == "_" * 21 + "w"
    with pytest.raises(Internal):
        new_jti(bytes(15))


def test_a_lifetime_as_asked_for() -> None:
    planned = plan_lifetime(NOW + timedelta(microseconds=999999), 60, 3600, NOW + timedelta(days=1))
    assert planned.issued_at == NOW
    assert planned.not_before == NOW - timedelta(seconds=10)
    assert planned.not_after == NOW + timedelta(seconds=60)
    assert (planned.requested_seconds, planned.granted_seconds, planned.caps) == (60, 60, ())


def test_nothing_asked_for_is_the_default() -> None:
    assert plan_lifetime(NOW, 0, 3600, None, backdate_seconds=0).not_after == NOW + timedelta(hours=1)


def test_a_lifetime_is_cut_to_its_issuers_and_says_so() -> None:
    end = NOW + timedelta(seconds=40, microseconds=5)
    planned = plan_lifetime(NOW, 60, 3600, end)
    assert planned.not_after == NOW + timedelta(seconds=40)
    assert (planned.requested_seconds, planned.granted_seconds) == (60, 40)
    assert [cap.reason for cap in planned.caps] == ["AUTHORITY_EXPIRES"]


def test_the_tightest_cap_comes_first() -> None:
    entry = Cap(reason="ENTRY_EXPIRES", detail="the entry ends", not_after=NOW + timedelta(seconds=30))
    later = Cap(reason="LATER", detail="later", not_after=NOW + timedelta(seconds=90))
    planned = plan_lifetime(NOW, 60, 3600, NOW + timedelta(seconds=40), limits=(later, entry))
    assert [cap.reason for cap in planned.caps] == ["ENTRY_EXPIRES", "AUTHORITY_EXPIRES"]
    assert planned.granted_seconds == 30


@pytest.mark.parametrize(
    ("requested", "issuer_end", "reason"),
    [(60, NOW, "AUTHORITY_EXPIRES"), (60, NOW - timedelta(days=1), "AUTHORITY_EXPIRES"), (0, None, "TTL_ZERO")],
)
def test_nothing_left_to_live(requested: int, issuer_end: datetime | None, reason: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        plan_lifetime(NOW, requested, 0, issuer_end)
    assert caught.value.reason == reason


def test_a_negative_ttl_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="-1 seconds"):
        plan_lifetime(NOW, -1, 3600, None)


@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 10**6),
    st.none() | st.datetimes(datetime(2026, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    st.datetimes(datetime(2026, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
def test_no_lifetime_exceeds_its_bounds(requested: int, default: int, end: datetime | None, now: datetime) -> None:
    try:
        planned = plan_lifetime(now, requested, default, end)
    except FailedPrecondition:
        assert end is not None
        assert end < now + timedelta(seconds=1)
        return
    assert planned.not_before < planned.issued_at < planned.not_after
    assert 0 < planned.granted_seconds <= planned.requested_seconds
    assert end is None or planned.not_after <= end
    assert bool(planned.caps) == (planned.granted_seconds < planned.requested_seconds)


@pytest.mark.parametrize(
    ("moment", "encoded"),
    [
        (datetime(1950, 1, 1, tzinfo=UTC), b"\x17\x0d500101000000Z"),
        (datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d991231235959Z"),
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d491231235959Z"),
        (datetime(2050, 1, 1, tzinfo=UTC), b"\x18\x0f20500101000000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x18\x0f99991231235959Z"),
    ],
)
def test_times(moment: datetime, encoded: bytes) -> None:
    assert encode_time(moment) == encoded
    assert decode_validity(encode_validity(moment, moment)) == (moment, moment)


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1949, 12, 31, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        datetime(2026, 1, 1),
    ],
)
def test_times_that_no_certificate_has(moment: datetime) -> None:
    with pytest.raises(Internal):
        encode_time(moment)


def test_a_name_has_printable_strings_where_it_can() -> None:
    name = encode_name((Attribute(names.COUNTRY, "US"), Attribute(names.ORGANIZATION, "Acmé_*")))
    assert decode_name(name) == (Attribute(names.COUNTRY, "US"), Attribute(names.ORGANIZATION, "Acmé_*"))
    assert b"\x13\x02US" in name
    assert b"\x0c\x07Acm\xc3\xa9_*" in name


@pytest.mark.parametrize(
    "attribute",
    [
        Attribute(names.COUNTRY, "USA"),
        Attribute(names.COUNTRY, "U"),
        Attribute(names.COUNTRY, "é*"),
        Attribute(names.ORGANIZATION, ""),
        Attribute(names.ORGANIZATION, "x" * 65),
        Attribute(names.SERIAL_NUMBER, "a_b"),
    ],
)
def test_attributes_out_of_bounds_are_refused(attribute: Attribute) -> None:
    with pytest.raises(InvalidArgument) as caught:
        encode_name((attribute,))
    assert caught.value.reason == "SUBJECT"


def test_names_of_others_can_be_read() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ü", _type=x509.name._ASN1Type.BMPString),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b"),
        ]
    )
    assert [attribute.text for attribute in decode_name(name.public_bytes())] == ["ü", "a@b"]


def test_a_minted_subject_keeps_what_spire_keeps() -> None:
    asked = (
        Attribute(names.COMMON_NAME, "my cn"),
        Attribute(names.ORGANIZATION, "Acme"),
        Attribute(names.COUNTRY, "DE"),
        Attribute(der.object_identifier("1.2.3"), "odd"),
        Attribute(names.LOCALITY, ""),
    )
    assert minted(asked).subject == (Attribute(names.COUNTRY, "DE"), Attribute(names.ORGANIZATION, "Acme"))
    assert minted(()) is WORKLOAD
    assert minted(asked[:1]) is WORKLOAD


@pytest.mark.parametrize(
    ("profile", "path"),
    [(WORKLOAD, "/w"), (WORKLOAD, "/spirex"), (AGENT, "/spire/agent/x/y"), (SERVER, "/spire/server")],
)
def test_paths_that_fit_their_profile(profile: LeafProfile, path: str) -> None:
    check_identity(profile, SpiffeId.of(TD, path), TD)


@pytest.mark.parametrize(
    ("profile", "path", "reason"),
    [
        (WORKLOAD, "", "SPIFFE_ID_NO_PATH"),
        (WORKLOAD, "/spire", "SPIFFE_ID_RESERVED"),
        (WORKLOAD, "/spire/server", "SPIFFE_ID_RESERVED"),
        (WORKLOAD, "/spire/agent/x/y", "SPIFFE_ID_RESERVED"),
        (AGENT, "/w", "SPIFFE_ID_RESERVED"),
        (AGENT, "/spire/server", "SPIFFE_ID_RESERVED"),
        (SERVER, "/w", "SPIFFE_ID_RESERVED"),
    ],
)
def test_paths_that_do_not(profile: LeafProfile, path: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_identity(profile, SpiffeId.of(TD, path), TD)
    assert caught.value.reason == reason


def test_an_id_of_another_trust_domain_fits_no_profile() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_identity(WORKLOAD, SpiffeId.of(TrustDomain("other.org"), "/w"), TD)
    assert caught.value.reason == "SPIFFE_ID_FOREIGN"


def test_kid_characters_are_even() -> None:
    """62 characters, none of them preferred: 1,000 kids out of a counter spread over all."""
    step = 0x9E3779B97F4A7C15F39CC0605CEDC8341082276BF3A27251F86C6A11D0C18E95
    text = "".join(new_kid((number * step % 2**256).to_bytes(32, "big")) for number in range(1000))
    counts = Counter(text)
    assert len(counts) == 62
    assert max(counts.values()) < 2 * min(counts.values())
