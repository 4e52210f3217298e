"""What happened last is kept within bounds, and nobody's much pushes out everybody's little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ca.runtime.ring import Bounds, FairRing


def ring(*, items: int = 10, size: int = 1000, each_items: int = 10, each_size: int = 1000) -> FairRing[str]:
    return FairRing(total=Bounds(items=items, bytes=size), each=Bounds(items=each_items, bytes=each_size))


def test_the_newest_come_first_across_shares() -> None:
    kept = ring()
    for share, item in (("a", "1"), ("b", "2"), ("a", "3")):
        assert kept.put(share, item, 10) == []
    assert list(kept) == ["3", "2", "1"]
    assert (len(kept), kept.used_bytes) == (3, 30)


def test_a_share_keeps_no_more_than_its_own_room() -> None:
    kept = ring(each_items=2, each_size=100)
    kept.put("a", "1", 10)
    kept.put("a", "2", 10)
    assert kept.put("a", "3", 10) == ["1"]
    assert kept.put("a", "4", 95) == ["2", "3"], "by bytes as well"
    assert list(kept) == ["4"]


def test_what_is_larger_than_a_shares_room_is_not_kept() -> None:
    kept = ring(each_size=100)
    kept.put("a", "1", 10)
    assert kept.put("a", "huge", 101) == ["huge"]
    assert list(kept) == ["1"]


def test_one_noisy_share_loses_its_own_and_nobody_elses() -> None:
    kept = ring(items=10, each_items=10)
    kept.put("quiet", "first", 10)
    for number in range(1000):
        kept.put("noisy", f"n{number}", 10)
    assert "first" in list(kept)
    assert len(kept) == 10


def test_of_shares_that_have_as_much_the_oldest_goes() -> None:
    kept = ring(items=3)
    for share in "abcd":
        kept.put(share, share, 10)
    assert list(kept) == ["d", "c", "b"]


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 300)), max_size=200))
def test_no_bound_is_ever_exceeded_and_what_goes_is_told(puts: list[tuple[str, int]]) -> None:
    kept: FairRing[tuple[int, str, int]] = FairRing(total=Bounds(items=7, bytes=500), each=Bounds(items=4, bytes=200))
    gone: set[tuple[int, str, int]] = set()
    for number, (share, size) in enumerate(puts):
        gone.update(kept.put(share, (number, share, size), size))
        held = list(kept)
        assert len(held) == len(kept) <= 7
        assert sum(size for _, _, size in held) == kept.used_bytes <= 500
        for name in "abcde":
            own = [size for _, share, size in held if share == name]
            assert len(own) <= 4
            assert sum(own) <= 200
    assert gone.isdisjoint(kept)
    assert len(gone) + len(kept) == len(puts)
