"""Entries that any local user could have the SVID of are written, and it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair

ID = f"spiffe://{TRUST_DOMAIN}"
BASE = ("entry", "create", "--parent-id", f"{ID}/node")
SAID = "is for a program, whoever runs it"


@pytest.fixture(scope="module", autouse=True)
def node(running: Pair) -> None:
    """The parent of most entries here."""
    running.create_entry("/node")


def log_lines(running: Pair) -> list[str]:
    text = (running.home / "server.log").read_text()
    return [line for line in text.splitlines() if "SELECTORS_PROGRAM_ALONE" in line]


@pytest.mark.parametrize("selector", ["unix:path:/usr/bin/web", "unix:sha256:00ff"])
def test_a_program_alone_is_warned_of_on_stderr_and_in_the_servers_log(
    live: Caadmin, running: Pair, selector: str
) -> None:
    before = len(log_lines(running))
    name = f"{ID}/alone/{selector[5]}"
    ran = live(*BASE, "--spiffe-id", name, "--selector", selector, "-o", "json")
    assert ran.code == 0
    entry_id = ran.json["results"][0]["entry"]["id"]  # what programs read is not touched
    assert f"warning: `{name}` {SAID}" in ran.err
    assert "(SELECTORS_PROGRAM_ALONE)" in ran.err
    assert "hint: add who runs it, such as the selector `unix:uid:1000`" in ran.err
    (line,) = log_lines(running)[before:]
    assert name in line
    assert SAID not in live("entry", "update", entry_id, "--hint", "x").err
    assert len(log_lines(running)) == before + 1, "once"
    mended = live("entry", "update", entry_id, "--selector", selector, "--selector", "unix:uid:7")
    assert (mended.code, mended.err) == (0, "")
    undone = live("entry", "update", entry_id, "--selector", selector)
    assert SAID in undone.err
    assert len(log_lines(running)) == before + 2


@pytest.mark.parametrize("other", ["unix:uid:7", "unix:user:web", "unix:gid:7", "unix:group:web", "k8s:ns:web"])
def test_who_runs_it_makes_it_good(live: Caadmin, running: Pair, other: str) -> None:
    before = len(log_lines(running))
    selectors = ("--selector", "unix:path:/usr/bin/web", "--selector", other)
    ran = live(*BASE, "--spiffe-id", f"{ID}/good/{other.replace(':', '-')}", *selectors)
    assert (ran.code, ran.err) == (0, "")
    assert len(log_lines(running)) == before


def test_of_a_file_few_are_named_and_the_rest_counted(live: Caadmin, running: Pair) -> None:
    entries = [
        {
            "spiffe_id": f"{ID}/many/{n}",
            "parent_id": f"{ID}/node",
            "selectors": [f"unix:path:/usr/bin/web{n}"],
        }
        for n in range(8)
    ]
    Path("entries.json").write_text(json.dumps({"entries": [*entries, {**entries[0], "selectors": ["unix:uid:7"]}]}))
    before = len(log_lines(running))
    ran = live("entry", "create", "--file", "entries.json")
    assert ran.code == 0
    assert ran.err.count(SAID) == 5
    assert "warning: so are 3 more\n" in ran.err
    assert ran.err.count("hint:") == 1
    (line,) = log_lines(running)[before:]
    assert "more=7" in line


def test_an_entry_that_was_not_written_is_not_warned_of(live: Caadmin) -> None:
    ran = live(
        "entry", "create", "--parent-id", "spiffe://other/x", "--spiffe-id", f"{ID}/x", "--selector", "unix:path:/x"
    )
    assert ran.code != 0
    assert SAID not in ran.err


def created(live: Caadmin, parent: str, name: str) -> str:
    options = ("--parent-id", f"{ID}{parent}", "--spiffe-id", f"{ID}{name}", "--selector", "unix:uid:7")
    ran = live("entry", "create", *options)
    assert ran.code == 0
    return ran.err


def test_a_parent_that_nobody_is_is_told(live: Caadmin, running: Pair) -> None:
    for parent in ("/nobody", "/spire/agent/x509pop/nobody"):
        said = created(live, parent, f"/below{parent}")
        assert f"warning: `{ID}{parent}` is the parent of an entry, and no agent and no entry is it" in said
        assert "(ENTRY_PARENT_UNKNOWN)" in said
        assert "caadmin agent list" in said
    for parent in (running.agent_path(), "/node", "/spire/server"):
        assert created(live, parent, f"/well/below{parent}") == ""
    assert created(live, "/below/nobody", "/further/below") == "", "that entry was made above"


def test_the_parents_of_a_file_are_told_once_and_may_be_in_it(live: Caadmin) -> None:
    pairs = [("/file/node", "/spire/server"), ("/file/web", "/file/node"), ("/file/a", "/lost"), ("/file/b", "/lost")]
    entries = [
        {"spiffe_id": f"{ID}{name}", "parent_id": f"{ID}{parent}", "selectors": ["unix:uid:7"]}
        for name, parent in pairs
    ]
    Path("entries.json").write_text(json.dumps({"entries": entries}))
    ran = live("entry", "create", "--file", "entries.json")
    assert ran.code == 0
    assert ran.err.count("ENTRY_PARENT_UNKNOWN") == 1
    assert f"`{ID}/lost`" in ran.err
