"""Each requirement of the SPIFFE standards on issuers, validators, publishers and clients is cited where it is met.

The rows are those of a checklist over SPIFFE-ID (A), X509-SVID (B), JWT-SVID (C) and the trust domain and bundle
document (G). A citation is a row id in parentheses on a line of code that also names the section, for example
`# SPIFFE-ID §2.2 (A14)`, or a range, `X509-SVID §4.3 (B12-B17)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("ca", "attestor", "sds")
REPOSITORY = Path(__file__).parents[3]


def rows(letter: str, *spans: tuple[int, int]) -> list[str]:
    return [f"{letter}{n}" for first, last in spans for n in range(first, last + 1)]


HERE = [
    *rows("A", (1, 18), (23, 24)),
    *rows("B", (1, 3), (8, 8), (10, 31)),
    *rows("C", (1, 1), (3, 9), (11, 19)),
    *rows("G", (1, 9), (11, 19)),
]
"""Rows that this room meets, whoever else does."""

ELSEWHERE = [*rows("A", (19, 22)), *rows("B", (4, 7), (9, 9)), *rows("C", (2, 2))]
"""Rows about what is issued. C10 and G10 are in neither list: they bind operators and authors alone."""

_GROUP = re.compile(r"\(([^()]*)\)")
_IDS = re.compile(r"\b([ABCG])([0-9]{1,2})(?:\s*[-–]\s*\1?([0-9]{1,2}))?\b")


def cited(line: str) -> Iterator[str]:
    """Row ids cited on one line of code."""
    if "§" not in line:
        return
    for group in _GROUP.findall(line):
        for letter, first, last in _IDS.findall(group):
            yield from (f"{letter}{n}" for n in range(int(first), int(last or first) + 1))


def citations(*folders: str) -> set[str]:
    files = (path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py")))
    return {row for path in files for line in path.read_text(encoding="utf-8").splitlines() for row in cited(line)}


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("x  # SPIFFE-ID §2.2 (A14)", {"A14"}),
        ("x  # SPIFFE-ID §2 (A2), §2.1 (A5)", {"A2", "A5"}),
        ("x  # X509-SVID §4.3 (B12-B14); and (C1, C3)", {"B12", "B13", "B14", "C1", "C3"}),
        ("x  # JWT-SVID §5.2, §5.3 (both: C15, C16)", {"C15", "C16"}),
        ("x  # (A14) without a section", set()),
        ("x  # §2.2 A14 without parentheses", set()),
        ("x  # RFC 5280 §6.1.3 (a)(2)", set()),
        ("x  # §1 (A140)", set()),
    ],
)
def test_what_counts_as_a_citation(line: str, rows: set[str]) -> None:
    assert set(cited(line)) == rows


def test_every_row_of_this_room_is_cited_in_it() -> None:
    found = citations("ca/identity")
    assert [row for row in HERE if row not in found] == []


def test_every_row_is_cited_somewhere() -> None:
    found = citations(*ROOMS)
    assert [row for row in HERE + ELSEWHERE if row not in found] == []
    assert len(HERE + ELSEWHERE) == 24 + 31 + 18 + 18
