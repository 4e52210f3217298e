"""`caadmin issued`, `audit`, `prune` and `debug bundle` against a real server and agent."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair

ID = f"spiffe://{TRUST_DOMAIN}"
UID = f"uid:{os.getuid()}"


def create(live: Caadmin, path: str, *more: str) -> str:
    ran = live(
        *("entry", "create", "--parent-id", f"{ID}/node", "--spiffe-id", f"{ID}{path}", "--selector", "t:v"),
        *("-o", "json", *more),
    )
    assert ran.code == 0, ran.err
    return str(ran.json["results"][0]["entry"]["id"])


class TestIssued:
    def test_what_was_minted_is_found_by_its_id(self, live: Caadmin) -> None:
        assert live("svid", "mint", "x509", "--spiffe-id", f"{ID}/m", "--ttl", "10m", "--write", "m").code == 0
        assert live("svid", "mint", "jwt", "--spiffe-id", f"{ID}/m", "--audience", "a").code == 0
        jwt, x509 = live("issued", "--spiffe-id", f"{ID}/m", "--live", "-o", "json").json["records"]
        assert (jwt["kind"], x509["kind"]) == ("jwt", "x509")
        assert len(bytes.fromhex(x509["key_sha256"])) == 32
        table = live("issued", "--spiffe-id", f"{ID}/m").out.splitlines()
        assert table[0].split("  ")[0] == "KIND"
        assert x509["serial_or_kid"] in table[2]
        by_authority = live("issued", "--authority", x509["authority_id"], "-o", "json").json["records"]
        assert {record["authority_id"] for record in by_authority} == {x509["authority_id"]}
        assert x509["serial_or_kid"] in {record["serial_or_kid"] for record in by_authority}
        assert live("issued", "--authority", "nobodys").out == "nothing issued\n"

    def test_an_agents_share(self, live: Caadmin, running: Pair) -> None:
        agent = running.status().spiffe_id
        records = live("issued", "--agent", agent, "-o", "json").json["records"]
        assert agent in {record["spiffe_id"] for record in records}
        assert {record["agent_id"] for record in records} == {agent}

    def test_nothing(self, live: Caadmin) -> None:
        assert live("issued", "--spiffe-id", f"{ID}/nobody").out == "nothing issued\n"


class TestAudit:
    def test_who_did_what(self, live: Caadmin) -> None:
        entry_id = create(live, "/audited")
        assert live("entry", "delete", entry_id, "nope").code == 3
        records = live("audit", "--item", entry_id, "--since", "1h", "--actor", UID, "-o", "json").json["records"]
        assert [record["call"].rpartition("/")[2] for record in records] == ["BatchCreateEntry", "BatchDeleteEntry"]
        assert [item["code"] for item in records[1]["items"]] == ["OK", "NotFound"]
        shown = live("audit", "--item", entry_id).out.splitlines()
        assert shown[0].startswith("TIME ")
        assert f"{entry_id} {ID}/audited" in shown[1]
        assert "nope NotFound" in shown[2]
        assert live("audit", "--call", "BanAgent").out == "no calls\n"
        assert live("audit", "--limit", "1").err == "these are the newest 1; --limit 0 shows all\n"
        assert live("audit", "--limit", "0").err == ""
        assert live("audit", "--since", "2060-01-01T00:00:00Z").out == "no calls\n"

    def test_a_batch_that_went_well_as_a_call_alone_is_not_ok(self, live: Caadmin) -> None:
        entry_id = create(live, "/once")
        assert live("entry", "delete", "no-such-entry").code != 0
        assert live("entry", "delete", entry_id, "no-such-entry").code != 0
        [alone, both] = live("audit", "--item", "no-such-entry").out.splitlines()[1:]
        assert alone.split()[4] == "NotFound"
        assert " 1 of 2 failed " in both
        [fine] = live("audit", "--item", entry_id, "--call", "BatchCreateEntry").out.splitlines()[1:]
        assert fine.split()[4] == "OK"
        [record] = live("audit", "--item", "no-such-entry", "--limit", "1", "-o", "json").json["records"]
        assert record["code"] == "OK", "programs see the call and its items"

    @pytest.mark.parametrize("since", ["soon", "1969-01-01"])
    def test_a_malformed_time(self, live: Caadmin, since: str) -> None:
        assert live("audit", "--since", since).code == 2

    def test_following_prints_lines(self, live: Caadmin, running: Pair) -> None:
        import subprocess
        import sys

        entry_id = create(live, "/followed")
        command = [sys.executable, "-m", "ca.cli.caadmin", "audit", "--follow", "--item", entry_id, "-o", "json"]
        environment = {**os.environ, "BURGEE_ADMIN_SOCKET": str(running.admin_socket), "PYTHONPATH": os.fspath(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["call"].endswith("/BatchCreateEntry")
            assert live("entry", "delete", entry_id).code == 0
            assert json.loads(process.stdout.readline())["call"].endswith("/BatchDeleteEntry")
            process.terminate()


class TestPrune:
    def test_a_rehearsal_and_the_real_thing(self, live: Caadmin) -> None:
        entry_id = create(live, "/over", "--expires-at", "2001-09-09T01:46:40Z")
        planned = live("prune", "--dry-run", "-o", "json").json
        assert (planned["dry_run"], planned["entries"], planned["agents"]) == (True, [entry_id], [])
        assert live("entry", "show", entry_id).code == 0
        shown = live("prune", "--agents-expired-for", "30d").out
        assert shown.startswith("forgotten:\n")
        assert entry_id in shown
        assert live("entry", "show", entry_id).code == 3
        assert live("prune", "--agents-expired-for", "soon").code == 2


class TestDebugBundle:
    def test_it_holds_what_helps_and_nothing_secret(self, live: Caadmin, running: Pair, tmp_path: Path) -> None:
        token = running.create_token()
        made = live("debug", "bundle", "--file", "bug.tar.gz", "-o", "json")
        assert made.code == 0, made.err
        assert (made.json["server"], made.json["agent"]) == (True, True)
        assert stat.S_IMODE((tmp_path / "bug.tar.gz").stat().st_mode) == 0o600
        with tarfile.open(tmp_path / "bug.tar.gz") as archive:
            parts = {m.name: (archive.extractfile(m) or pytest.fail(m.name)).read() for m in archive.getmembers()}
        for who in ("server", "agent"):
            for part in ("status.json", "versions.json", "config.yaml", "health.json", "metrics.txt", "log.txt"):
                assert parts[f"burgee-debug/{who}/{part}"], (who, part)
        assert b"trust_domain: pair.test" in parts["burgee-debug/agent/config.yaml"]
        assert b"agent started" in parts["burgee-debug/agent/log.txt"]
        whole = b"\n".join(parts.values())
        assert token.encode() not in whole
        assert b"PRIVATE KEY" not in whole
        for key in _secrets(running):
            assert key not in whole

    def test_one_that_does_not_answer_is_noted(self, live: Caadmin, tmp_path: Path) -> None:
        made = live("debug", "bundle", "--file", "bug.tar.gz", "--agent-socket", "/nowhere/a.sock", "-o", "json")
        assert (made.code, made.json["agent"]) == (0, False)
        assert "burgee-debug/agent/error.txt".removeprefix("burgee-debug/") in made.json["parts"]
        nobody = live("debug", "bundle", "--file", "x.tar.gz", "--agent-socket", "/n/a.sock", "--socket", "/n/s.sock")
        assert nobody.code == 1
        assert live("debug", "bundle", "--file", "/no/such/directory/x.tar.gz").code == 2


def _secrets(running: Pair) -> list[bytes]:
    """The bodies of the server's private keys, and the agent's sealing key."""
    keys = [path.read_bytes() for path in (running.home / "server" / "keys").iterdir()]
    assert keys
    lines = [line for key in keys for line in key.splitlines() if line and b"-----" not in line]
    sealing = [path.read_bytes() for path in (running.home / "agent").glob("*seal*") if path.is_file()]
    return [line for line in (*lines, *sealing) if len(line) > 16]


ROOT = Path(__file__).resolve().parents[3]
