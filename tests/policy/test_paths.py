"""Paths are normalized as a real Envoy did it, and the guard lets through only what no proxy sees differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.paths import EscapedSlashes, Normalization, Redirected, Rejected, is_normal, normalize

ROWS: list[tuple[str, list[str]]] = json.loads((Path(__file__).parent / "envoy_paths.json").read_text())["rows"]
BOTH = {"normalize_path": True, "merge_slashes": True}
COLUMNS = (
    Normalization(normalize_path=False),
    Normalization(merge_slashes=True),
    Normalization(),
    Normalization(normalize_path=False, merge_slashes=True),
    *(Normalization(merge_slashes=True, escaped_slashes=action) for action in list(EscapedSlashes)[1:]),
    Normalization(normalize_path=False, escaped_slashes=EscapedSlashes.FORWARD),
)


def seen(path: str, options: Normalization) -> str:
    try:
        return normalize(path, options)
    except Redirected as redirected:
        return f"307:{redirected.path}"
    except Rejected:
        return "400"


@pytest.mark.parametrize(("path", "wanted"), ROWS)
def test_as_a_real_envoy_did(path: str, wanted: list[str]) -> None:
    assert [seen(path, options) for options in COLUMNS] == [text.partition("?")[0] for text in wanted]


@pytest.mark.parametrize(
    "path",
    [
        *("/a//b", "//", "/a/.", "/a/..", "/a/./b", "/a/../b", "/..;/b", "/a/..;x=y/b", "/.;/b"),
        *("/%41", "/%7e", "/%2E", "/a%2fb", "/a%2Fb", "/a%5cb", "/a%5Cb", "/a%00", "/a\\b", "/a\x00", "/%5f", "/%2d"),
    ],
)
def test_is_not_normal(path: str) -> None:
    assert not is_normal(path)
    assert not is_normal(f"{path}?query")


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "/a.b/..c/d..", "/a%20b", "/a%252F", "/a;b/c", "/a?x//../%2f", "*"])
def test_is_normal(path: str) -> None:
    assert is_normal(path)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(["/", ".", "..", "a", "%2e", "%2F", "%5c", ";", "\\", "%41", "b"])).map("".join))
def test_what_is_normal_is_the_same_for_every_proxy(path: str) -> None:
    path = f"/{path}"
    if is_normal(path):
        assert {seen(path, options) for options in COLUMNS} == {path}
