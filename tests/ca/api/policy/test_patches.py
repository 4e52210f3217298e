"""The two patch languages, by the examples of their RFCs, and by what somebody hostile would send."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ca.api.policy.json_patch import PatchRefused, patched, same
from ca.api.policy.merge_patch import merged
from ca.api.policy.pointers import pointer_of, steps_of

# RFC 7396, appendix A.
MERGES: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("document", "patch", "result"), MERGES)
def test_merge_patches_of_the_rfc(document: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy(document)
    assert merged(document, patch) == result
    assert document == before


# RFC 6902, appendix A: document, patch, result; None where it is refused.
PATCHES: dict[str, tuple[Any, Any, Any]] = {
    "A.1": ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    "A.2": (
        {"foo": ["bar", "baz"]},
        [{"op": "add", "path": "/foo/1", "value": "qux"}],
        {"foo": ["bar", "qux", "baz"]},
    ),
    "A.3": ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    "A.4": ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    "A.5": (
        {"baz": "qux", "foo": "bar"},
        [{"op": "replace", "path": "/baz", "value": "boo"}],
        {"baz": "boo", "foo": "bar"},
    ),
    "A.6": (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    "A.7": (
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    "A.8": (
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    "A.9": ({"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}], None),
    "A.10": (
        {"foo": "bar"},
        [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
        {"foo": "bar", "child": {"grandchild": {}}},
    ),
    "A.11": (
        {"foo": "bar"},
        [{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}],
        {"foo": "bar", "baz": "qux"},
    ),
    "A.12": ({"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": "qux"}], None),
    "A.14": ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    "A.15": ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}], None),
    "A.16": (
        {"foo": ["bar"]},
        [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
        {"foo": ["bar", ["abc", "def"]]},
    ),
}


@pytest.mark.parametrize("name", PATCHES)
def test_json_patches_of_the_rfc(name: str) -> None:
    document, patch, result = PATCHES[name]
    before = copy.deepcopy(document)
    if result is None:
        with pytest.raises(PatchRefused):
            patched(document, patch)
    else:
        assert patched(document, patch) == result
    assert document == before


@pytest.mark.parametrize(
    "operation",
    [
        None,
        {},
        {"op": "explode", "path": ""},
        {"op": "_find", "path": ""},
        {"op": ["add"], "path": ""},
        {"op": "add", "path": "/a"},
        {"op": "add", "path": 7, "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "add", "path": "/a~2", "value": 1},
        {"op": "add", "path": "/list/01", "value": 1},
        {"op": "add", "path": "/list/-1", "value": 1},
        {"op": "add", "path": "/list/4", "value": 1},
        {"op": "add", "path": f"/list/{'9' * 5000}", "value": 1},
        {"op": "add", "path": "/text/0", "value": 1},
        {"op": "add", "path": "/map" * 65, "value": 1},
        {"op": "remove", "path": ""},
        {"op": "remove", "path": "/list/-"},
        {"op": "replace", "path": "/nothing", "value": 1},
        {"op": "move", "from": "/map", "path": "/map/inner"},
        {"op": "move", "path": "/map"},
        {"op": "copy", "from": "/nothing", "path": "/map"},
    ],
)
def test_bad_operations_name_their_place(operation: Any) -> None:
    document = {"list": [1, 2, 3], "map": {}, "text": "t"}
    with pytest.raises(PatchRefused) as caught:
        patched(document, [{"op": "test", "path": "/text", "value": "t"}, operation])
    assert caught.value.pointer == "/1"


def test_a_patch_cannot_make_a_bomb() -> None:
    doubling = [{"op": "copy", "from": "", "path": f"/{number}"} for number in range(40)]
    with pytest.raises(PatchRefused, match="at most"):
        patched({"a": 1}, doubling)
    with pytest.raises(PatchRefused, match="operations"):
        patched({}, [{"op": "test", "path": "", "value": {}}] * 1001)


def test_numbers_are_equal_by_value_and_booleans_are_none() -> None:
    assert same({"a": [1, None]}, {"a": [1.0, None]})
    assert not same(1, True)
    assert not same(0, False)
    assert not same([1], [1, 2])
    assert not same({"a": 1}, {"b": 1})
    assert not same(None, False)


@pytest.mark.parametrize("steps", [[], [""], ["a/b", "c~d", "~1", "0"]])
def test_pointers_are_read_as_they_are_written(steps: list[str]) -> None:
    assert steps_of(pointer_of(steps)) == steps
