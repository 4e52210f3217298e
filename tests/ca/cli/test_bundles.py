"""`caadmin bundle` for other trust domains, against a real server: nothing that is still valid goes unasked."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.bundle_json import format_spiffe_bundle, parse_spiffe_bundle
from ca.identity.bundle_pem import certificate_pem, parse_pem
from ca.identity.spiffe_id import TrustDomain
from tests.ca.api.test_own_bundle import a_root, jwk
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair

OTHER = TrustDomain("other.example")


class Terminal(io.StringIO):
    """Standard input with somebody who answers."""

    def isatty(self) -> bool:
        return True


def spiffe(root: bytes, key_id: str = "k1", *, sequence: int = 7, domain: TrustDomain = OTHER) -> str:
    key = JwtAuthority(key_id=key_id, public_key=jwk(key_id).public_key)
    return format_spiffe_bundle(
        TrustBundle(
            trust_domain=domain,
            x509_authorities=(X509Authority(certificate=root),),
            jwt_authorities=(key,),
            refresh_hint_seconds=300,
            sequence_number=sequence,
        )
    )


@pytest.fixture
def root(live: Caadmin, tmp_path: Path) -> bytes:
    """The root of `other.example`, whose SPIFFE bundle is set and lies in `other.json`."""
    made = a_root("other")
    (tmp_path / "other.json").write_text(spiffe(made))
    ran = live("bundle", "set", "other.json", "--trust-domain", OTHER.name, "--yes")
    assert ran.code == 0, ran.err
    return made


def test_it_is_set_listed_shown_and_deleted(live: Caadmin, root: bytes) -> None:
    assert live("bundle", "show", OTHER.name).out == certificate_pem(root)
    held = parse_spiffe_bundle(live("bundle", "show", "spiffe://other.example", "--format", "spiffe").out, OTHER)
    assert (held.sequence_number, held.refresh_hint_seconds, len(held.jwt_authorities)) == (7, 300, 1)
    [listed] = live("bundle", "list", "-o", "json").json["bundles"]
    assert live("bundle", "show", OTHER.name, "-o", "json").json == listed
    assert yaml.safe_load(live("bundle", "list", "-o", "yaml").out) == {"bundles": [listed]}
    header, row = live("bundle", "list").out.splitlines()
    assert header.startswith("TRUST DOMAIN")
    assert row.split()[:2] == [OTHER.name, "1"]
    assert live("bundle", "delete", OTHER.name, "--yes").out == f"{OTHER.name} deleted\n"
    assert live("bundle", "list").out == "no bundle of another trust domain\n"
    gone = live("bundle", "show", OTHER.name)
    assert (gone.code, "(BUNDLE_NOT_FOUND)" in gone.err) == (3, True)
    assert live("bundle", "delete", OTHER.name).code == 3


def test_pages_are_followed(live: Caadmin, root: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ca.cli.bundle_calls.PAGE", 1)
    (tmp_path / "more.pem").write_text(certificate_pem(a_root()))
    assert live("bundle", "set", "more.pem", "--trust-domain", "more.example").code == 0
    names = [bundle["trust_domain"] for bundle in live("bundle", "list", "-o", "json").json["bundles"]]
    assert sorted(names) == ["more.example", OTHER.name]
    live("bundle", "delete", "more.example", "--yes")


def test_the_own_bundle_is_shown_by_its_name_and_not_set(live: Caadmin, running: Pair, tmp_path: Path) -> None:
    assert live("bundle", "show", TRUST_DOMAIN).out == running.bundle_file.read_text()
    (tmp_path / "own.pem").write_text(certificate_pem(a_root()))
    refused = live("bundle", "set", "own.pem", "--trust-domain", TRUST_DOMAIN, "-o", "json")
    assert (refused.code, refused.json["bundle"]) == (2, None)
    assert "own trust domain is not allowed" in refused.json["status"]["message"]
    assert live("bundle", "delete", TRUST_DOMAIN, "--yes").code == 2
    assert live("bundle", "show").out == running.bundle_file.read_text()


def test_what_is_the_same_or_more_is_set_unasked(live: Caadmin, root: bytes, tmp_path: Path) -> None:
    assert live("bundle", "set", "other.json", "--trust-domain", OTHER.name).code == 0
    held = parse_spiffe_bundle((tmp_path / "other.json").read_text(), OTHER)
    more = TrustBundle(
        trust_domain=OTHER,
        x509_authorities=(*held.x509_authorities, X509Authority(certificate=a_root())),
        jwt_authorities=held.jwt_authorities,
        sequence_number=8,
    )
    (tmp_path / "more.json").write_text(format_spiffe_bundle(more))
    ran = live("bundle", "set", "more.json", "--trust-domain", OTHER.name, "-o", "json")
    assert (ran.code, len(ran.json["bundle"]["x509_authorities"])) == (0, 2)


def test_what_would_be_lost_is_named_and_asked_for(
    live: Caadmin, root: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = live("bundle", "show", OTHER.name, "-o", "json").json
    lost_root = before["x509_authorities"][0]["authority_id"]
    (tmp_path / "new.json").write_text(spiffe(a_root("new"), "k2", sequence=3))
    command = ("bundle", "set", "new.json", "--trust-domain", OTHER.name)
    unattended = live(*command)
    assert unattended.code == 1
    for words in (lost_root, "the JWT key k1", "sequence number 7, in the file 3", "(NOT_CONFIRMED)", "--yes"):
        assert words in unattended.err
    for answer in ("\n", "n\n", "yesterday\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert live(*command).code == 1
    assert live("bundle", "show", OTHER.name, "-o", "json").json == before
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert live(*command).code == 0
    assert live("bundle", "show", OTHER.name, "-o", "json").json["sequence_number"] == 3


def test_a_deletion_is_asked_for_and_tells_what_goes_along(
    live: Caadmin, running: Pair, root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_id = running.create_entry("/friend", federates_with=[OTHER.name])
    refused = live("bundle", "delete", OTHER.name)
    assert refused.code == 1
    assert "federated with 1 registration entries" in refused.out
    assert "hint: --mode dissociate" in refused.err
    asked = live("bundle", "delete", OTHER.name, "--mode", "delete")
    assert (asked.code, "1 entries that federate with it" in asked.err) == (1, True)
    assert live("entry", "show", entry_id).code == 0
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    done = live("bundle", "delete", OTHER.name, "--mode", "dissociate", "-o", "json")
    assert (done.code, done.json["status"]["code"]) == (0, "OK")
    assert "1 entries' federation with it" in done.err
    assert live("entry", "show", entry_id, "-o", "json").json["federates_with"] == []
    running.delete_entry(entry_id)


def test_mode_delete_takes_the_entries_too(live: Caadmin, running: Pair, root: bytes) -> None:
    entry_id = running.create_entry("/friend", federates_with=[OTHER.name])
    assert live("bundle", "delete", OTHER.name, "--mode", "delete", "--yes").code == 0
    assert live("entry", "show", entry_id).code == 3


def test_standard_input_in_both_formats(live: Caadmin, monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_root()
    for text, name in ((certificate_pem(made), "pem"), (spiffe(made), "spiffe")):
        for more in ([], ["--format", name]):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            ran = live("bundle", "set", "-", "--trust-domain", OTHER.name, "--yes", *more)
            assert ran.code == 0, ran.err
            assert parse_pem(live("bundle", "show", OTHER.name).out, OTHER).x509_authorities[0].certificate == made
    live("bundle", "delete", OTHER.name, "--yes")


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ("", [], "PEM_MALFORMED"),
        ("{", [], "BUNDLE_MALFORMED"),
        ('{"keys": []}', [], "BUNDLE_EMPTY"),
        ('{"keys": [{"kty": "EC"}]}', [], "BUNDLE_EMPTY"),
        ('{"keys": []}', ["--format", "pem"], "PEM_MALFORMED"),
        (certificate_pem(a_root()), ["--format", "spiffe"], "BUNDLE_MALFORMED"),
        (None, [], "FILE"),
    ],
)
def test_what_is_no_bundle_is_not_sent(
    caadmin: Caadmin, tmp_path: Path, text: str | None, more: list[str], reason: str
) -> None:
    """No server is asked: there is none."""
    if text is not None:
        (tmp_path / "f").write_text(text)
    ran = caadmin("bundle", "set", "f", "--trust-domain", OTHER.name, *more)
    assert (ran.code, f"({reason})" in ran.err) == (2, True), ran.err


def test_a_shell_completes_trust_domains(live: Caadmin, root: bytes) -> None:
    script = Path(sys.executable).parent / "caadmin"

    def completed(words: str, socket: str) -> list[str]:
        environment = {
            **os.environ,
            "_CAADMIN_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
            "BURGEE_ADMIN_SOCKET": socket,
        }
        done = subprocess.run([script], env=environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.split()

    socket = os.environ["BURGEE_ADMIN_SOCKET"]
    assert completed("caadmin bundle show oth", socket) == [OTHER.name]
    assert completed("caadmin bundle delete oth", socket) == [OTHER.name]
    assert completed("caadmin bundle show nobody", socket) == []
    assert completed("caadmin bundle show oth", "/nowhere/admin.sock") == []
    assert completed("caadmin bundle delete x --mode d", socket) == ["delete", "dissociate"]
