"""The threat model names tests that exist, defines each label that it uses, and leaves no room or table out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from ca.store.tables import metadata
from tests.docs.pages import spans
from tests.docs.reason_codes import ROOT
from tests.docs.syntax import parse

PAGE = ROOT / "docs/security.md"
TEXT = PAGE.read_text()
LINK = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
LABEL = re.compile(r"\b([A-Z])(\d)(?:–\1(\d))?(?=\W)|\b(Z)\b")
named = sorted({(file, test) for span in spans(PAGE) for file, test in LINK.findall(span)})


@cache
def functions(file: Path) -> frozenset[str]:
    """Names of all functions in a file, those of classes too."""
    tree = parse(file)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize(("file", "test"), named, ids=[test for _, test in named])
def test_each_named_test_exists(file: str, test: str) -> None:
    """And pytest would collect it."""
    assert (ROOT / file).is_file()
    assert Path(file).name.startswith("test_")
    assert test.startswith("test_")
    assert test in functions(ROOT / file)


def defined() -> set[str]:
    """Labels that have their line under "Which test shows it"."""
    return set(re.findall(r"^- \*\*([A-Z]\d?)\*\* ", TEXT, re.M))


def used() -> set[str]:
    """Labels in the last column of every table, ranges spelled out."""
    found: set[str] = set()
    for line in TEXT.splitlines():
        if line.startswith("| ") and line.count("|") >= 5:
            for letter, first, last, alone in LABEL.findall(line.rstrip("| ").rpartition("|")[2] + " "):
                found |= {alone} if alone else {f"{letter}{n}" for n in range(int(first), int(last or first) + 1)}
    return found


def test_labels_are_defined_and_used() -> None:
    assert len(defined()) > 40
    assert used() == defined()


def test_every_label_names_a_test() -> None:
    lines = re.findall(r"^- \*\*([A-Z]\d?)\*\* (.*)$", TEXT, re.M)
    assert [label for label, line in lines if not LINK.search(line)] == []


BAD_DAYS = [
    *("tests/ca/test_bad_*.py", "tests/e2e/test_bad_*.py"),
    *("tests/e2e/test_kill_server.py", "tests/e2e/test_hostile_neighbour.py"),
]


def test_no_test_of_a_bad_day_is_left_out() -> None:
    """What it shows is claimed: a new one needs its place on the page."""
    files = {path for pattern in BAD_DAYS for path in ROOT.glob(pattern)}
    assert len(files) >= 7
    there = {
        (str(file.relative_to(ROOT)), name) for file in files for name in functions(file) if name.startswith("test_")
    }
    assert there - set(named) == set()


def test_no_table_of_the_store_is_left_out() -> None:
    assert set(metadata.tables) <= spans(PAGE)


def test_no_room_is_left_out() -> None:
    inner = {f"ca/{path.parent.name}" for path in (ROOT / "ca").glob("*/__init__.py")}
    assert inner - {"ca/proto"} | {"attestor", "sds", "policy"} <= spans(PAGE)


def test_the_reader_of_functions_can_fail() -> None:
    assert "test_there_is_no_such_test" not in functions(Path(__file__))
