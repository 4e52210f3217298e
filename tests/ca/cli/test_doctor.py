"""`caadmin doctor` against a real server and agent."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tests.ca.cli.conftest import Caadmin
from tests.support.pair import Pair

pytestmark = pytest.mark.xdist_group("doctor")


def levels(report: list[dict[str, str]]) -> dict[str, str]:
    return {one["what"]: one["level"] for one in report}


def test_both_that_are_here_are_looked_at(live: Caadmin, running: Pair) -> None:
    said = live("doctor", "-o", "json")
    assert said.code == 0, said.out
    assert set(said.json) == {"server", "agent"}
    server, agent = levels(said.json["server"]), levels(said.json["agent"])
    for what in ("health", "listener", "x509 authority", "jwt authority", "admin socket", "data directory", "agents"):
        assert server[what] == "ok"
    for what in ("reachability", "server", "clock", "bundle", "first trust", "identity", "workload socket"):
        assert agent[what] == "ok", said.json["agent"]
    assert not any(one["hint"] for one in said.json["server"] if one["level"] == "ok")


@pytest.mark.parametrize("patient", ["server", "agent"])
def test_one_of_them(live: Caadmin, patient: str) -> None:
    said = live("doctor", patient, "-o", "json")
    assert said.code == 0
    assert set(said.json) == {patient}


def test_what_failed_has_its_fix_and_an_exit_code(live: Caadmin, running: Pair) -> None:
    mode = stat.S_IMODE(running.workload_socket.stat().st_mode)
    running.workload_socket.chmod(0o700)
    try:
        said = live("doctor")
    finally:
        running.workload_socket.chmod(mode)
    assert said.code == 1
    lines = [line.strip() for line in said.out.splitlines()]
    (failed,) = (number for number, line in enumerate(lines) if line.startswith("FAILED"))
    assert "workload socket" in lines[failed]
    assert lines[failed + 1] == f"fix: chmod 0777 {running.workload_socket}"


def test_entries_that_nothing_can_match_are_warned_of(live: Caadmin, running: Pair) -> None:
    def made(name: str, *options: str) -> str:
        spiffe_id = f"spiffe://pair.test/{name}"
        done = live("entry", "create", "--spiffe-id", spiffe_id, *options, "-o", "json")
        assert done.code == 0, done.err
        found: str = done.json["results"][0]["entry"]["id"]
        return found

    me = f"unix:uid:{os.getuid()}"
    parent = ("--parent-id", running.status().spiffe_id)
    orphan = made("orphan", "--parent-id", "spiffe://pair.test/spire/agent/join_token/nobody", "--selector", me)
    odd = made("odd", *parent, "--selector", "unicks:uid:1")
    over = made("over", *parent, "--selector", me, "--expires-at", str(int(time.time()) + 1))
    long = made("long", *parent, "--selector", "unix:uid:7", "--x509-svid-ttl", "30d")
    time.sleep(1.2)
    try:
        said = live("doctor", "server", "-o", "json")
    finally:
        for entry_id in (orphan, odd, over, long):
            running.delete_entry(entry_id)
    assert said.code == 0, "warnings are no failure"
    found = {one["what"]: one for one in said.json["server"]}
    for what, entry_id in {
        "entries without a parent": orphan,
        "entries that nothing matches": odd,
        "expired entries": over,
        "lives of SVIDs": long,
    }.items():
        assert found[what]["level"] == "warning"
        assert f"`{entry_id}`" in found[what]["detail"]
        assert found[what]["hint"]


def test_nobody_is_here(caadmin: Caadmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("BURGEE_AGENT_SOCKET", str(tmp_path / "none"))
    said = caadmin("doctor")
    assert said.code == 3
    assert "DOCTOR_NOBODY" in said.err
    assert caadmin("doctor", "server").code == 1


def test_one_that_is_here_and_does_not_answer_is_a_finding(live: Caadmin, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dead.sock").touch()
    monkeypatch.setenv("BURGEE_AGENT_SOCKET", str(Path("dead.sock").absolute()))
    said = live("doctor", "-o", "json")
    assert said.code == 1
    (finding,) = said.json["agent"]
    assert (finding["what"], finding["level"]) == ("running", "failed")
    assert "UNREACHABLE" in finding["detail"]
