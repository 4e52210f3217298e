"""Entity tags, cursors and links."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from ca.api.policy.cursors import after_of, cursor_of, next_link
from ca.api.policy.etags import Tags, parse_tags
from ca.errors import InvalidArgument


@pytest.mark.parametrize(
    ("header", "tags"),
    [
        ("*", Tags(any=True)),
        ('"a"', Tags(strong=frozenset({"a"}))),
        (' "a" , W/"b","c,d"', Tags(strong=frozenset({"a", "c,d"}), weak=frozenset({"b"}))),
        ('""', Tags(strong=frozenset({""}))),
    ],
)
def test_tags_are_read(header: str, tags: Tags) -> None:
    assert parse_tags(header) == tags


@pytest.mark.parametrize("header", ["", "a", '"a', '"a" "b"', '"a",', "**", '"a" b"', 'w/"a"', ', "a"'])
def test_what_is_no_tag_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="entity tags"):
        parse_tags(header)


def test_weak_tags_are_for_reading_alone() -> None:
    weak = parse_tags('W/"a"')
    assert not weak.match("a")
    assert weak.name("a")
    assert not parse_tags("*").match(None)
    assert not parse_tags("*").name(None)


def test_a_cursor_comes_back_and_is_of_one_list() -> None:
    cursor = cursor_of("policies", "shop/ordérs")
    assert after_of("policies", cursor) == "shop/ordérs"
    assert after_of("policies", "") == ""
    for wrong in (
        cursor_of("grants", "x"),
        cursor + "=",
        cursor[:-1],
        "é",
        "W10",
        "[" * 4000,
        cursor_of("policies", "a") + "!",
    ):
        with pytest.raises(InvalidArgument) as caught:
            after_of("policies", wrong)
        assert caught.value.reason == "PAGE_TOKEN"


def test_the_link_keeps_what_was_asked() -> None:
    link = next_link("/v1/policy/a b", {"limit": "2", "principal": "x&y", "cursor": "old"}, "new")
    address, _, relation = link.partition(">; ")
    assert relation == 'rel="next"'
    found = urlsplit(address.removeprefix("<"))
    assert found.path == "/v1/policy/a%20b"
    assert parse_qs(found.query) == {"limit": ["2"], "principal": ["x&y"], "cursor": ["new"]}
