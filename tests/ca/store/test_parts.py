"""The small parts of the store by themselves: batches of records, page tokens, the multimap, times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.store.issuance_codec import decode, encode
from ca.store.multimap import MultiMap
from ca.store.paging import page_token, parse_page_token
from ca.store.rows import chunks, from_micros, selectors_from_json, selectors_to_json, similarity, to_micros
from ca.store.values import IssuanceRecord
from tests.support.stores import selectors

times = st.datetimes(datetime(1950, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records = st.builds(
    IssuanceRecord,
    kind=st.sampled_from(["x509", "jwt", "wit", "ca"]),
    serial_or_kid=texts,
    tbs_sha256=st.binary(min_size=32, max_size=32),
    authority_id=st.sampled_from(["a", "b"]),
    server=st.just("s"),
    spiffe_id=texts,
    entry_id=texts,
    entry_revision=st.integers(0, 2**63),
    agent=texts,
    not_before=times,
    not_after=times,
    key_sha256=st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(records, min_size=1, max_size=6), st.integers(1, 3))
def test_a_batch_comes_back_as_it_was(made: list[IssuanceRecord], times_over: int) -> None:
    assert decode(encode(made * times_over)) == made * times_over


def test_a_batch_of_another_version_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="version 9"):
        decode(b"\x09\x00\x00\x00\x00")


@given(times)
def test_times_keep_their_microseconds(time: datetime) -> None:
    assert from_micros(to_micros(time)) == time


def test_times_of_other_zones_are_the_same_instant() -> None:
    from datetime import timezone

    there = datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))
    assert from_micros(to_micros(there)) == datetime(2026, 1, 1, tzinfo=UTC)


@given(st.integers(0, 2**59))
def test_page_tokens_are_read_back(position: int) -> None:
    assert parse_page_token(page_token(position)) == position


@given(st.text(max_size=30))
def test_no_other_text_is_a_page_token(text: str) -> None:
    try:
        position = parse_page_token(text)
    except InvalidArgument:
        return
    assert page_token(position) == text


def test_selectors_with_odd_characters_keep_apart() -> None:
    odd = selectors('t:"],["u', "t:ü:\\", "t:\n")
    assert selectors_from_json(selectors_to_json(odd)) == odd
    assert similarity("a", "b", selectors_to_json(odd)) != similarity("a", "b", selectors_to_json(selectors("t:x")))
    assert similarity("ab", "c", "") != similarity("a", "bc", "")


steps = st.lists(st.tuples(st.booleans(), st.sampled_from("xy"), st.sampled_from("abc"), st.integers()), max_size=30)


@given(steps)
def test_multimap_is_a_dictionary_of_dictionaries(taken: list[tuple[bool, str, str, int]]) -> None:
    tested: MultiMap[str, str, int] = MultiMap()
    plain: dict[str, dict[str, int]] = {}
    for putting, key, member, value in taken:
        if putting:
            tested.put(key, member, value)
            plain.setdefault(key, {})[member] = value
        elif member in plain.get(key, {}):
            tested.remove(key, member)
            del plain[key][member]
        for each in "xy":
            assert sorted(tested.values(each)) == sorted(plain.get(each, {}).values())
            assert tested.count(each) == len(plain.get(each, {}))
            assert (each in tested) == bool(plain.get(each))


def test_chunks_cover_everything_once() -> None:
    assert [list(part) for part in chunks([1, 2, 3], 2)] == [[1, 2], [3]]
    assert list(chunks([], 2)) == []
