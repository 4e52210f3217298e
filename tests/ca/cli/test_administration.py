"""`caadmin` against a real server and agent: entries, agents, tokens, bundles, minting, health."""

from __future__ import annotations

import json
import secrets
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.identity.bundle_json import parse_spiffe_bundle, parse_workload_jwks
from ca.identity.spiffe_id import TrustDomain
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair

ID = f"spiffe://{TRUST_DOMAIN}"
PARENT = f"{ID}/node"


def create(live: Caadmin, path: str, *more: str) -> str:
    ran = live(
        *("entry", "create", "--parent-id", PARENT, "--spiffe-id", f"{ID}{path}", "--selector", "t:v", "-o", "json"),
        *more,
    )
    assert ran.code == 0, ran.err
    return str(ran.json["results"][0]["entry"]["id"])


def test_an_entry_lives_from_create_to_delete(live: Caadmin) -> None:
    entry_id = create(live, "/life", "--x509-svid-ttl", "10m", "--dns-name", "a.example", "--hint", "h")
    shown = live("entry", "show", entry_id, "-o", "json").json
    assert shown["spiffe_id"] == f"{ID}/life"
    assert shown["x509_svid_ttl_seconds"] == 600
    assert (shown["dns_names"], shown["hint"], shown["selectors"]) == (["a.example"], "h", ["t:v"])
    updated = live("entry", "update", entry_id, "--jwt-svid-ttl", "60", "--dns-name", "", "-o", "json")
    entry = updated.json["results"][0]["entry"]
    assert (entry["jwt_svid_ttl_seconds"], entry["x509_svid_ttl_seconds"], entry["dns_names"]) == (60, 600, [])
    assert entry["revision_number"] == shown["revision_number"] + 1
    assert "X509-SVID TTL  10m\nJWT-SVID TTL   1m\n" in live("entry", "show", entry_id).out
    assert live("entry", "delete", entry_id).out == f"{entry_id} deleted\n"
    gone = live("entry", "show", entry_id)
    assert (gone.code, gone.out) == (3, "")
    assert "error: entry not found (ENTRY_NOT_FOUND)" in gone.err


def test_lists_page_filter_and_count(live: Caadmin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.cli.entry.PAGE", 2)
    made = {create(live, f"/page{number}", "--hint", "paging") for number in range(5)}
    listed = live("entry", "list", "--hint", "paging", "-o", "json").json["entries"]
    assert {entry["id"] for entry in listed} == made
    assert live("entry", "count", "--hint", "paging", "-o", "json").json == {"count": 5}
    one = live("entry", "list", "--spiffe-id", f"{ID}/page3", "--selector", "t:v", "--match-selectors", "exact")
    assert len(one.out.splitlines()) == 2
    assert one.out.startswith("ID ")
    assert live("entry", "list", "--spiffe-id", f"{ID}/nobody").out == "no entries\n"
    assert live("entry", "delete", *made).code == 0


def test_a_failed_item_fails_the_batch_in_json_too(live: Caadmin, tmp_path: Path) -> None:
    entry_id = create(live, "/twice")
    again = live(
        *("entry", "create", "--parent-id", PARENT, "--spiffe-id", f"{ID}/twice", "--selector", "t:v", "-o", "json")
    )
    assert again.code == 1
    assert again.json["results"][0]["status"] == {
        "code": "AlreadyExists",
        "reason": "ENTRY_SIMILAR",
        "message": "similar entry already exists",
    }
    mixed = live("entry", "delete", entry_id, "no-such-entry", "-o", "yaml")
    assert mixed.code == 3
    statuses = [result["status"] for result in yaml.safe_load(mixed.out)["results"]]
    assert [(s["code"], s["reason"]) for s in statuses] == [("OK", ""), ("NotFound", "ENTRY_NOT_FOUND")]


def test_what_is_listed_can_be_created_from_a_file(live: Caadmin, tmp_path: Path) -> None:
    made = [create(live, "/file1", "--downstream"), create(live, "/file2", "--expires-at", "2060-01-01T00:00:00Z")]
    saved = [live("entry", "show", entry_id, "-o", "json").json for entry_id in made]
    (tmp_path / "entries.json").write_text(json.dumps({"entries": saved}))
    assert live("entry", "delete", *made).code == 0
    restored = live("entry", "create", "--file", "entries.json", "-o", "json")
    assert restored.code == 0, restored.err
    volatile = {"created_at", "revision_number"}
    for before, result in zip(saved, restored.json["results"], strict=True):
        assert {k: v for k, v in result["entry"].items() if k not in volatile} == {
            k: v for k, v in before.items() if k not in volatile
        }
    changed = [{**entry, "hint": "changed"} for entry in saved]
    (tmp_path / "entries.yaml").write_text(yaml.safe_dump(changed))
    assert live("entry", "update", "--file", "entries.yaml").code == 0
    assert live("entry", "count", "--hint", "changed").out == "2\n"
    live("entry", "delete", *made)


def test_a_node_alias_has_the_server_as_its_parent(live: Caadmin) -> None:
    ran = live("entry", "create", "--node", "--spiffe-id", f"{ID}/alias", "--selector", "a:b", "-o", "json")
    entry = ran.json["results"][0]["entry"]
    assert entry["parent_id"] == f"{ID}/spire/server"
    live("entry", "delete", entry["id"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["entry", "create", "--spiffe-id", f"{ID}/x"], 2, "missing --parent-id (or --node), --selector"),
        (["entry", "create", "--spiffe-id", "nope", "--parent-id", PARENT, "--selector", "a:b"], 2, "SPIFFE_ID_SCHEME"),
        (["entry", "create", "--spiffe-id", f"{ID}/x", "--parent-id", PARENT, "--selector", "bad"], 2, "has no colon"),
        (
            ["entry", "create", "--spiffe-id", "spiffe://foreign/x", "--parent-id", PARENT, "--selector", "a:b"],
            2,
            "not created",
        ),
        (["entry", "update", "some-id"], 2, "nothing to change was given"),
        (["entry", "update", "no-such-id", "--hint", "x"], 3, "not updated: entry not found (ENTRY_NOT_FOUND)\n"),
        (["entry", "delete", "no-such-id"], 3, "not deleted: entry not found (ENTRY_NOT_FOUND)\n"),
        (["entry", "create", "--file", "no-such-file"], 2, "cannot read `no-such-file`"),
        (["entry", "delete"], 2, "Missing argument"),
        (["agent", "show", f"{ID}/spire/agent/x/none"], 3, "agent not found"),
        (["agent", "evict", f"{ID}/spire/agent/x/none"], 3, "not evicted: agent not found (AGENT_NOT_FOUND)\n"),
        (["token", "create", "--ttl", "soon"], 2, "`soon` is not a duration"),
        (["svid", "mint", "x509", "--spiffe-id", "spiffe://foreign/x"], 2, "foreign"),
        (["svid", "mint", "jwt", "--spiffe-id", f"{ID}/x"], 2, "--audience"),
        (["bundle", "show", "--format", "der"], 2, "der"),
        (["no-such-noun"], 2, "No such command"),
    ],
)
def test_what_goes_wrong_is_told_with_an_exit_code(live: Caadmin, arguments: list[str], code: int, said: str) -> None:
    ran = live(*arguments)
    assert ran.code == code
    assert said in ran.out + ran.err


def test_agents_are_listed_shown_and_counted(live: Caadmin, running: Pair) -> None:
    spiffe_id = running.status().spiffe_id
    [agent] = live("agent", "list", "-o", "json").json["agents"]
    assert (agent["spiffe_id"], agent["attestation_type"], agent["banned"]) == (spiffe_id, "join_token", False)
    assert live("agent", "show", spiffe_id, "-o", "json").json == agent
    assert live("agent", "count", "--attestation-type", "join_token").out == "1\n"
    assert live("agent", "count", "--banned").out == "0\n"
    assert live("agent", "list", "--expires-before", "2020-01-01T00:00:00Z").out == "no agents\n"


def test_ban_and_evict_act_on_every_id_and_report_each(caadmin: Caadmin, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.pair import pair

    with pair() as own:
        monkeypatch.setenv("BURGEE_ADMIN_SOCKET", str(own.admin_socket))
        spiffe_id = own.status().spiffe_id.replace("spiffe://", "SPIFFE://")
        nobody = f"{ID}/spire/agent/x/none"
        banned = caadmin("agent", "ban", spiffe_id, nobody, "-o", "json")
        assert banned.code == 3
        assert [result["status"]["code"] for result in banned.json["results"]] == ["OK", "NotFound"]
        assert [result["status"]["reason"] for result in banned.json["results"]] == ["", "AGENT_NOT_FOUND"]
        assert caadmin("agent", "count", "--banned").out == "1\n"
        assert caadmin("agent", "evict", spiffe_id).out == f"{spiffe_id} evicted\n"
        assert caadmin("agent", "count").out == "0\n"


def test_a_join_token_is_printed_with_its_end(live: Caadmin) -> None:
    made = live("token", "create", "--ttl", "1h", "--spiffe-id", f"{ID}/first-node", "-o", "json")
    assert set(made.json) == {"token", "id", "name", "uses", "expires_at"}
    assert live("entry", "count", "--spiffe-id", f"{ID}/first-node").out == "1\n"
    assert live("token", "create").out.startswith("Token    ")


def test_a_token_that_could_be_guessed_is_warned_of(live: Caadmin) -> None:
    weak = live("token", "create", "--token", "correct-horse-node1", "-o", "json")
    assert (weak.code, weak.json["token"]) == (0, "correct-horse-node1")
    assert "could be guessed" in weak.err
    assert live("token", "create", "--token", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").err.startswith("warning: ")
    assert live("token", "create", "--token", secrets.token_hex(16)).err == ""


def test_a_join_token_is_written_privately_and_then_not_printed(live: Caadmin, tmp_path: Path) -> None:
    ran = live("token", "create", "--write", "token", "-o", "json")
    assert ran.json["file"] == "token"
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    written = (tmp_path / "token").read_text()
    assert len(written.strip()) > 16
    assert written.strip() not in ran.out
    shown = live("token", "create", "--write", "token")
    assert shown.out.startswith("Written to  token\n")
    assert (tmp_path / "token").read_text() != written
    refused = live("token", "create", "--write", "no/such/directory")
    assert (refused.code, "(FILE)" in refused.err) == (2, True)


def test_join_tokens_are_listed_without_themselves(live: Caadmin) -> None:
    made = live("token", "create", "--ttl", "2h", "--spiffe-id", f"{ID}/listed", "-o", "json").json
    listed = live("token", "list", "-o", "json")
    assert made["token"] not in listed.out
    [own] = [token for token in listed.json["tokens"] if token["id"] == made["id"]]
    assert own == {
        "id": made["id"],
        "name": "",
        "spiffe_id": f"{ID}/listed",
        "state": "unused",
        "uses": 1,
        "uses_left": 1,
        "expires_at": made["expires_at"],
        "used_at": None,
        "used_by": "",
    }
    table = live("token", "list").out.splitlines()
    assert table[0].split() == ["ID", "NAME", "STATE", "LEFT", "EXPIRES", "LAST", "USED", "BY", "ALIAS"]
    [row] = [line for line in table if line.startswith(made["id"])]
    assert row.split()[1:4] == ["-", "unused", "1/1"]
    assert row.endswith(f"{ID}/listed")


def test_a_token_for_a_fleet_is_counted_and_ended_by_its_name(live: Caadmin) -> None:
    made = live("token", "generate", "--name", "web-fleet", "--uses", "5", "--ttl", "10m", "-o", "json").json
    assert (made["name"], made["uses"], len(made["token"])) == ("web-fleet", 5, 36)
    taken = live("token", "create", "--name", "web-fleet")
    assert (taken.code, "JOIN_TOKEN_NAME_TAKEN" in taken.err, "token revoke web-fleet" in taken.err) == (1, True, True)
    chosen = live("token", "create", "--uses", "2", "--token", secrets.token_hex(16))
    assert "JOIN_TOKEN_USES" in chosen.err
    [row] = [line for line in live("token", "list").out.splitlines() if line.startswith(made["id"])]
    assert row.split()[1:4] == ["web-fleet", "unused", "5/5"]
    ended = live("token", "revoke", "web-fleet", "-o", "json").json
    assert (ended["id"], ended["state"]) == (made["id"], "revoked")
    assert "JOIN_TOKEN_NOT_FOUND" in live("token", "revoke", "web-fleet").err
    assert "Name     web-fleet" in live("token", "create", "--name", "web-fleet", "--uses", "2").out
    assert live("token", "revoke", "web-fleet").out.splitlines()[1].split()[1:3] == ["web-fleet", "revoked"]


def test_the_bundle_comes_in_every_shape(live: Caadmin, running: Pair) -> None:
    pem = live("bundle", "show").out
    assert pem == running.bundle_file.read_text()
    domain = TrustDomain(TRUST_DOMAIN)
    spiffe = parse_spiffe_bundle(live("bundle", "show", "--format", "spiffe").out, domain)
    assert (len(spiffe.x509_authorities), len(spiffe.jwt_authorities)) == (1, 1)
    jwks = parse_workload_jwks(live("bundle", "show", "--format", "jwks").out, domain)
    assert jwks.jwt_authorities[0].key_id == spiffe.jwt_authorities[0].key_id
    described = live("bundle", "show", "-o", "json").json
    assert described["trust_domain"] == TRUST_DOMAIN
    assert described["x509_authorities"][0]["tainted"] is False


def test_a_minted_svid_and_its_key_are_written_privately(live: Caadmin, tmp_path: Path) -> None:
    where = tmp_path / "out"
    ran = live("svid", "mint", "x509", "--spiffe-id", f"{ID}/m", "--dns-name", "m.example", "--write", str(where))
    assert ran.code == 0, ran.err
    assert stat.S_IMODE(where.stat().st_mode) == 0o700
    assert {path.name for path in where.iterdir()} == {"svid.key", "svid.pem", "bundle.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in where.iterdir()} == {0o600}
    leaf = x509.load_pem_x509_certificate((where / "svid.pem").read_bytes())
    key = serialization.load_pem_private_key((where / "svid.key").read_bytes(), None)
    assert leaf.public_key() == key.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"{ID}/m"]


def test_a_minted_svid_is_printed_when_it_is_not_written(live: Caadmin) -> None:
    ran = live("svid", "mint", "x509", "--spiffe-id", f"{ID}/m", "-o", "json")
    leaf = x509.load_pem_x509_certificate(ran.json["svid"].encode())
    assert leaf.public_key() == serialization.load_pem_private_key(ran.json["key"].encode(), None).public_key()
    assert ran.json["bundle"] == live("bundle", "show").out


def test_a_shortened_life_is_explained(live: Caadmin) -> None:
    ran = live("svid", "mint", "jwt", "--spiffe-id", f"{ID}/m", "--audience", "a", "--ttl", "300d", "-o", "json")
    assert ran.code == 0, ran.err
    lifetime = ran.json["lifetime"]
    assert lifetime["requested_seconds"] == 300 * 86400
    assert lifetime["granted_seconds"] < lifetime["requested_seconds"]
    assert lifetime["caps"][0]["reason"] in ran.err
    assert ran.json["token"].count(".") == 2


def test_health_of_server_and_agent(live: Caadmin, running: Pair) -> None:
    server = live("health", "-o", "json")
    assert (server.code, server.json["healthy"], server.json["trust_domain"]) == (0, True, TRUST_DOMAIN)
    agent = live("health", "--agent", "-o", "json")
    assert (agent.code, agent.json["state"]) == (0, "OK")
    assert agent.json["spiffe_id"] == running.status().spiffe_id
    assert "healthy" in live("health").out
    assert live("agent", "sds").out == "no Envoy is connected\n"
