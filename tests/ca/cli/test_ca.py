"""`caadmin ca`, `ttl explain`, `outage-budget` and `upstream check` against a real server and agent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

ID = f"spiffe://{TRUST_DOMAIN}"


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    """Their own, for they are rotated; with a workload's SVID that is fetched ahead."""
    with pair(server={"consumer_waits": {"files_seconds": 0}}) as both:
        both.create_entry("/web")
        until("the workload's SVID", lambda: both.status().x509_svids == 1)
        yield both


def authorities(live: Caadmin, kind: str = "x509") -> dict[str, list[dict[str, Any]]]:
    """By state."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in live("ca", "status", "--kind", kind, "-o", "json").json["authorities"]:
        found.setdefault(one["status"], []).append(one)
    return found


def active(live: Caadmin, kind: str = "x509") -> str:
    return str(authorities(live, kind)["active"][0]["authority_id"])


def recorded(live: Caadmin, call: str) -> list[list[dict[str, str]]]:
    """What such calls in the audit log were about, the oldest first."""
    return [record["items"] for record in live("audit", "--call", call, "--limit", "0", "-o", "json").json["records"]]


class TestStatus:
    def test_it_draws_the_life_of_each_authority(self, live: Caadmin) -> None:
        until("the agent has said what it holds", lambda: authorities(live)["active"][0]["agents_acked"] == 1)
        shown = live("ca", "status").out
        assert f"x509 {active(live)}  active" in shown
        assert "[x] published" in shown
        assert "[x] acknowledged   by 1 of 1 agents" in shown
        assert "[x] active since" in shown
        assert re.search(r"\[ \] successor +is made 20", shown)
        assert re.search(r"signed +\d of \d SVIDs hang on it", shown)
        assert f"jwt {active(live, 'jwt')}  active" in shown

    def test_as_yaml(self, live: Caadmin) -> None:
        assert "agents: 1\n" in live("ca", "status", "-o", "yaml").out


class TestSteps:
    def test_a_rehearsal_changes_nothing(self, live: Caadmin) -> None:
        before = live("ca", "status", "-o", "json").json["authorities"]
        assert live("ca", "prepare", "jwt", "--dry-run").out == "a new jwt authority would be made and published\n"
        refused = live("ca", "prune", "x509", active(live), "--dry-run")
        assert refused.code == 1
        assert "only an old one can be pruned (AUTHORITY_STATE)" in refused.err
        after = live("ca", "status", "-o", "json").json["authorities"]
        assert [one["authority_id"] for one in after] == [one["authority_id"] for one in before]

    def test_a_jwt_key_step_by_step(self, live: Caadmin) -> None:
        assert live("ca", "rotate", "jwt", "--dry-run").out.startswith("next: prepare a successor of")
        old = active(live, "jwt")
        new = live("ca", "prepare", "jwt", "-o", "json").json["authority_id"]
        until("the agent has it", lambda: authorities(live, "jwt")["prepared"][0]["agents_acked"] == 1)
        assert live("ca", "activate", "jwt", new, "--dry-run").out.endswith("nobody would be cut off\n")
        assert live("ca", "activate", "jwt", new).out == f"jwt authority {new} signs now\n"
        assert live("ca", "taint", "jwt", old).out == f"jwt authority {old} tainted\n"
        assert live("ca", "revoke", "jwt", old).code == 0
        assert authorities(live, "jwt")["active"][0]["authority_id"] == new

    def test_what_would_be_cut_off_is_named_and_asked_for(self, live: Caadmin, running: Pair) -> None:
        """With its agent stopped nobody says that the new authority arrived."""
        running.stop("agent", sign=signal.SIGKILL)
        try:
            old, new = active(live), live("ca", "prepare", "x509", "-o", "json").json["authority_id"]
            rehearsed = live("ca", "activate", "x509", new, "--dry-run")
            assert rehearsed.code == 0
            assert "refused without --force, for it would cut off 1:" in rehearsed.out
            assert f"{ID}/web there would refuse what it signs" in rehearsed.out
            refused = live("ca", "activate", "x509", new)
            assert refused.code == 1
            assert "ROTATION_BLOCKED" in refused.err
            unasked = live("ca", "activate", "x509", new, "--force")
            assert unasked.code == 1
            assert "NOT_CONFIRMED" in unasked.err
            assert active(live) == old
            shown = live("ca", "status").out
            assert re.search(r"\[ \] acknowledged +by 0 of 1 agents\n +agent spiffe:", shown)
            assert re.search(r"\[ \] signs +by schedule .*, at the latest 20", shown)
        finally:
            running.start_agent(token=False)
        done = live("ca", "rotate", "x509", "--taint")  # or the next rotation would find it prepared already
        assert done.code == 0, done.err
        assert active(live) == new

    def test_who_is_not_there_is_told(self, live: Caadmin) -> None:
        unknown = live("ca", "taint", "x509", "nobody")
        assert (unknown.code, "AUTHORITY_UNKNOWN" in unknown.err) == (3, True)
        assert live("ca", "activate", "wit", "x").code == 2


class TestRotate:
    def test_a_whole_rotation_with_a_taint_takes_seconds(self, live: Caadmin, running: Pair) -> None:
        old = active(live)
        done = live("ca", "rotate", "x509", "--taint", "-o", "json")
        assert done.code == 0, done.err
        assert (done.json["replacing"], done.json["step"]) == (old, "revoke")
        now = authorities(live)
        assert now["active"][0]["authority_id"] != old
        assert old in [one["authority_id"] for one in now["revoked"]]
        done_to_it = [item["about"] for (item,) in recorded(live, "Rotate") if item["name"] == old]
        steps = [about.partition(": ")[2] for about in done_to_it if ": " in about]
        assert steps[-3:] == ["activate", "taint", "revoke"]
        assert running.status().state == "OK"
        assert (
            now["active"][0]["hanging"] == now["active"][0]["alive"] == 3
        )  # the agent's, its workload's, the server's

    def test_ctrl_c_stops_it_and_the_same_command_goes_on(self, live: Caadmin, running: Pair) -> None:
        old = active(live)
        running.stop("agent", sign=signal.SIGKILL)
        process = subprocess.Popen(
            [sys.executable, "-m", "ca.cli.caadmin", "ca", "rotate", "x509"],
            env={**os.environ, "BURGEE_ADMIN_SOCKET": str(running.admin_socket)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            said: list[str] = []
            while not said or not said[-1].startswith("waiting: "):
                said.append(process.stderr.readline())
                assert said[-1], said
            assert said[-1].startswith("waiting: 0 of 1 agents have it"), said
            before = recorded(live, "Rotate")
            assert {"name": old, "about": "x509: prepare", "code": "OK"} in [item for (item,) in before]
            time.sleep(3)
            assert recorded(live, "Rotate") == before, "it looks every second, which would bury what was done"
            process.send_signal(signal.SIGINT)
            assert said[0] == f"a successor of {old} is made and published\n"
            said += process.stderr.readlines()
            assert process.wait(20) == 1
            assert said[-1] == f"stopped; nothing is undone. go on with: caadmin ca rotate x509 --replacing {old}\n"
        finally:
            process.kill()
            running.start_agent(token=False)
        assert active(live) == old
        done = live("ca", "rotate", "x509", "--replacing", old, "--keep")
        assert done.code == 0, done.err
        assert [one["authority_id"] for one in authorities(live)["old"]] == [old]


class TestForesight:
    def test_ttl_explain(self, live: Caadmin, running: Pair) -> None:
        entry = running.create_entry("/greedy", x509_svid_ttl=90_000)
        x509, jwt = live("ttl", "explain", f"{ID}/greedy", "-o", "json").json["ttls"]
        assert (x509["entry_id"], x509["asked_by"], x509["asked_seconds"]) == (entry, "entry", 90_000)
        assert x509["granted_seconds"] < 86_400
        assert x509["caps"][0]["reason"] == "AUTHORITY_EXPIRES"
        assert jwt["granted_seconds"] == jwt["asked_seconds"] == 300
        shown = live("ttl", "explain", f"{ID}/greedy").out
        assert "X.509-SVID: asked 1d 1h (entry " in shown
        assert f"to mend it: ca_ttl_seconds of 540000 or more, or 14400 s or less in entry `{entry}`" in shown
        agent = live("ttl", "explain", running.status().spiffe_id).out
        assert agent.startswith("X.509-SVID: asked 1h (agent_ttl_seconds), granted 1h\n  in use: 1")
        assert live("ttl", "explain", f"{ID}/nobody").code == 3
        assert recorded(live, "ExplainTtl") == [], "it only reads"
        running.delete_entry(entry)

    def test_outage_budget(self, live: Caadmin, running: Pair) -> None:
        budget = live("outage-budget", "-o", "json").json
        first, *others = budget["server"]
        assert first["what"] == "new nodes, new entries, new JWT-SVIDs"
        assert {"agents' own SVIDs", "X.509-SVIDs of workloads"} <= {one["what"] for one in others}
        assert [one["at"] for one in budget["server"]] == sorted(one["at"] for one in budget["server"])
        assert {"no more X.509-SVIDs", "no more JWT-SVIDs"} <= {one["what"] for one in budget["authority"]}
        shown = live("outage-budget").out
        assert re.match(r"if the server stopped now:\n  20\S+ \(.*\) +new nodes, new entries, new JWT-SVIDs\n", shown)
        who = f"    first: {ID}/web on {running.status().spiffe_id}"
        assert who in shown.splitlines()
        assert f"    authority: {active(live)}" in shown.splitlines()
        wide = [line for line in shown.splitlines() if len(line) > 100 and not line.startswith("    first: ")]
        assert wide == [], "only an ID may be wider than a terminal"

    def test_upstream_check_without_an_upstream(self, live: Caadmin) -> None:
        assert live("upstream", "check").out == (
            "no upstream authority is configured: this server signs its own roots\n"
        )
