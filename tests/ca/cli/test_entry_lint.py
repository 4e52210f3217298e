"""`caadmin entry lint`: entries that are for more than was meant, those of the server or those of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair

ID = f"spiffe://{TRUST_DOMAIN}"
FORGE = f"{ID}/burgee/oidc/forge"


def entry(name: str, *selectors: str) -> dict[str, object]:
    return {"spiffe_id": f"{ID}/{name}", "parent_id": FORGE, "selectors": list(selectors)}


WIDE = entry("wide", "oidc:issuer:forge")
NEARLY_WIDE = entry("branch", "oidc:issuer:forge", "oidc:claim:ref:refs/heads/main")
NARROW = entry("narrow", "oidc:issuer:forge", "oidc:claim:repository:acme/shop")
PROGRAM = entry("program", "unix:path:/usr/bin/web")


def found(said: dict[str, list[dict[str, str]]]) -> set[tuple[str, str]]:
    return {(one["spiffe_id"].rpartition("/")[2], one["reason"]) for one in said["findings"]}


def test_a_file_is_looked_at_without_a_server(caadmin: Caadmin) -> None:
    Path("entries.json").write_text(json.dumps({"entries": [WIDE, NEARLY_WIDE, NARROW, PROGRAM]}))
    said = caadmin("entry", "lint", "--file", "entries.json", "-o", "json")
    assert said.code == 1
    assert found(said.json) == {
        ("wide", "SELECTORS_ISSUER_WIDE"),
        ("branch", "SELECTORS_ISSUER_WIDE"),
        ("program", "SELECTORS_PROGRAM_ALONE"),
    }
    assert all(one["hint"] and one["detail"] for one in said.json["findings"])
    Path("entries.json").write_text(json.dumps([NARROW]))
    well = caadmin("entry", "lint", "--file", "entries.json")
    assert (well.code, well.out, well.err) == (0, "1 entry, and each is for whom it names\n", "")


@pytest.fixture
def written(live: Caadmin, running: Pair) -> Iterator[None]:
    Path("entries.json").write_text(json.dumps([WIDE, NARROW]))
    made = live("entry", "create", "--file", "entries.json", "-o", "json")
    assert made.code == 0, made.err
    yield
    live("entry", "delete", *(one["entry"]["id"] for one in made.json["results"]))


def test_the_entries_of_the_server_are_looked_at(live: Caadmin, written: None) -> None:
    said = live("entry", "lint", "-o", "json")
    assert said.code == 1
    assert ("wide", "SELECTORS_ISSUER_WIDE") in found(said.json)
    assert "narrow" not in {name for name, _ in found(said.json)}
    (wide,) = (one for one in said.json["findings"] if one["spiffe_id"] == f"{ID}/wide")
    assert live("entry", "show", wide["entry_id"]).code == 0, "it names the entry"


def test_people_can_read_it(live: Caadmin, written: None) -> None:
    said = live("entry", "lint")
    assert said.code == 1
    lines = said.out.splitlines()
    (at,) = (number for number, line in enumerate(lines) if f"({ID}/wide)" in line)
    line, hint = lines[at : at + 2]
    assert line.startswith("entry ")
    assert line.endswith(
        f"({ID}/wide) is for everybody with a token of that issuer, whosesoever job it is (SELECTORS_ISSUER_WIDE)"
    )
    assert hint == "  hint: add whose it is, such as the selector `oidc:claim:repository:acme/shop`"
