from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ca.identity.selector import Selector
from sds.entries import EntryIndex, unique_hints
from sds.explain import explain_no_identity, nearest_miss
from tests.sds.lab import API, WEB, entry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
selectors = st.frozensets(st.sampled_from([Selector("unix", f"uid:{n}") for n in range(5)]), min_size=1)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), selectors, st.booleans()), max_size=30), selectors)
def test_a_lookup_equals_the_definition(
    steps: list[tuple[str, frozenset[Selector], bool]], caller: frozenset[Selector]
):
    index, plain = EntryIndex(), {}
    for entry_id, wanted, add in steps:
        if add:
            plain[entry_id] = entry(entry_id, "", *wanted)
            index.put(plain[entry_id])
        else:
            assert index.remove(entry_id) == (plain.pop(entry_id, None) is not None)
    expected = [plain[entry_id] for entry_id in sorted(plain) if plain[entry_id].selectors <= caller]
    assert list(index.matching(caller, NOW)) == expected


def test_an_entry_without_selectors_or_for_a_secret_store_is_nobodys():
    index = EntryIndex()
    index.put(entry("a", store_svid=True))
    bare = entry("b")
    index.put(type(bare)(id="b", spiffe_id=bare.spiffe_id, parent_id=bare.parent_id, selectors=frozenset()))
    assert index.matching(frozenset({WEB}), NOW) == ()
    assert len(index) == 2


def test_an_expired_entry_gives_nothing():
    index = EntryIndex()
    index.put(entry("a", expires_at=NOW + timedelta(seconds=1)))
    assert len(index.matching(frozenset({WEB}), NOW)) == 1
    assert index.matching(frozenset({WEB}), NOW + timedelta(seconds=1)) == ()


def test_putting_the_same_again_is_no_change():
    index = EntryIndex()
    assert index.put(entry("a"))
    assert not index.put(entry("a"))
    assert index.put(entry("a", hint="h"))


def test_the_oldest_entry_keeps_a_hint():  # F19, F30
    old = entry("z", hint="h", created_at=NOW)
    new = entry("a", hint="h", created_at=NOW + timedelta(seconds=1))
    other = entry("m", hint="other", created_at=NOW)
    bare = entry("n")
    assert unique_hints([new, old, other, bare]) == {"z": "h", "m": "other"}
    twin = entry("b", hint="h", created_at=NOW)
    assert unique_hints([old, twin]) == {"b": "h"}


def test_the_nearest_miss_is_named():
    entries = [entry("a", "", WEB, Selector("unix", "path:/x"), API), entry("b", "", WEB, Selector("unix", "path:/y"))]
    miss = nearest_miss(entries, frozenset({WEB}))
    assert miss is not None
    assert miss[0].id == "b"
    assert "path:/y" in explain_no_identity(entries, frozenset({WEB}))
    assert "in no entry" in explain_no_identity(entries, frozenset({Selector("unix", "uid:9")}))
    assert nearest_miss(entries, frozenset()) is None
