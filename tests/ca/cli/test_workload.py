"""`caadmin svid fetch|watch|inspect`: a client of the Workload API like any other, against a real agent."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.cli.workload_values import split_der
from ca.errors import InvalidArgument
from ca.identity.endpoint import DEFAULT_SOCKET
from sds.config import AgentConfig
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair

ID = f"spiffe://{TRUST_DOMAIN}"


@pytest.fixture(scope="module")
def entry(running: Pair) -> str:
    return running.create_entry("/me", f"unix:uid:{os.getuid()}", hint="mine")


def test_fetch_shows_no_key_and_writes_private_files(live: Caadmin, entry: str, tmp_path: Path) -> None:
    ran = live("svid", "fetch", "--write", "out", "-o", "json")
    assert ran.code == 0, ran.err
    [svid] = ran.json["svids"]
    assert (svid["spiffe_id"], svid["hint"], svid["problem"]) == (f"{ID}/me", "mine", None)
    assert ran.json["files"] == ["out/svid.key", "out/svid.pem", "out/bundle.pem"]
    assert "PRIVATE" not in ran.out
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ran.json["files"]} == {0o600}
    leaf = x509.load_pem_x509_certificate((tmp_path / "out/svid.pem").read_bytes())
    key = serialization.load_pem_private_key((tmp_path / "out/svid.key").read_bytes(), None)
    assert leaf.public_key() == key.public_key()


def test_fetch_gets_jwt_svids_for_an_audience(live: Caadmin, entry: str) -> None:
    ran = live("svid", "fetch", "--audience", "them", "-o", "json")
    assert ran.json["svids"][0]["spiffe_id"] == f"{ID}/me"
    assert ran.json["svids"][0]["token"].count(".") == 2


def test_inspect_shows_identities_and_bundles_and_checks_them(live: Caadmin, entry: str) -> None:
    ran = live("svid", "inspect", "-o", "json")
    assert ran.code == 0, ran.err
    assert ran.json["x509_bundles"][0]["trust_domain"] == TRUST_DOMAIN
    assert len(ran.json["jwt_bundles"][0]["key_ids"]) == 1
    assert ran.json["svids"][0]["authority_id"] == ran.json["x509_bundles"][0]["x509_authorities"][0]["authority_id"]
    table = live("svid", "inspect").out
    assert "valid" in table
    assert "X.509 AUTHORITY" in table


def test_watch_prints_an_object_per_update(live: Caadmin, entry: str) -> None:
    ran = live("svid", "watch", "--count", "1", "-o", "json")
    assert ran.code == 0
    [line] = ran.out.splitlines()
    assert json.loads(line)["update"] == 1


def test_watch_tries_again_and_says_why(live: Caadmin, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.cli.svid.FIRST_BACKOFF_SECONDS", 0.01)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ca.cli.svid.time.sleep", sleep)
    ran = live("svid", "watch", "--endpoint", "unix:///nonexistent.sock")
    assert naps == [0.01, 0.02, 0.04]
    assert ran.err.count("UNREACHABLE") == 3


def write_status(directory: Path, running: Pair, workload_socket: Path) -> None:
    """As `burgee up` does."""
    server = {"admin_socket": str(running.admin_socket)}
    agent = {"admin_socket": str(running.agent_admin_socket), "workload_socket": str(workload_socket)}
    (directory / ".burgee").mkdir()
    (directory / ".burgee/status.json").write_text(json.dumps({"server": server, "agent": agent}))


def test_where_the_workload_api_is_looked_for(
    caadmin: Caadmin, running: Pair, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment, a `burgee up` here, an agent's default."""
    nobody = tmp_path / "nobody.sock"
    monkeypatch.setattr("ca.cli.workload.DEFAULT_SOCKET", str(running.workload_socket))
    assert caadmin("svid", "fetch").code == 0
    write_status(tmp_path, running, nobody)
    ran = caadmin("svid", "fetch")
    assert (ran.code, str(nobody) in ran.err) == (1, True), "a `burgee up` here goes before the default"
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", f"unix://{running.workload_socket}")
    assert caadmin("svid", "fetch").code == 0


def test_all_sockets_are_looked_for_by_one_rule(
    caadmin: Caadmin, running: Pair, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a `burgee up` here and an installed pair, an entry is made and used at the same agent."""
    installed = tmp_path / "installed.sock"
    installed.touch()
    monkeypatch.setattr("ca.cli.connection.SERVER_SOCKET", installed)
    monkeypatch.setattr("ca.cli.connection.AGENT_SOCKET", installed)
    monkeypatch.setattr("ca.cli.workload.DEFAULT_SOCKET", str(installed))
    write_status(tmp_path, running, running.workload_socket)
    for command in (("entry", "count"), ("agent", "sds"), ("svid", "fetch")):
        assert caadmin(*command).code == 0, command
    for name in ("BURGEE_ADMIN_SOCKET", "BURGEE_AGENT_SOCKET"):
        monkeypatch.setenv(name, str(installed))
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", f"unix://{installed}")
    for command in (("entry", "count"), ("agent", "sds"), ("svid", "fetch")):
        assert str(installed) in caadmin(*command).err, command


def test_the_default_is_the_agents() -> None:
    assert Path(DEFAULT_SOCKET) == AgentConfig.model_fields["workload_socket"].default


def test_an_address_is_needed_and_must_be_one(caadmin: Caadmin, tmp_path: Path) -> None:
    missing = caadmin("svid", "fetch")
    assert missing.code == 2
    assert "(ENDPOINT_MISSING)" in missing.err
    for place in ("SPIFFE_ENDPOINT_SOCKET", str(tmp_path / "default.sock"), ".burgee/status.json"):
        assert place in missing.err
    assert caadmin("svid", "fetch", "--endpoint", "/run/x.sock").code == 2


def test_status_json_of_a_running_burgee_is_found(caadmin: Caadmin, running: Pair, entry: str, tmp_path: Path) -> None:
    write_status(tmp_path, running, running.workload_socket)
    assert caadmin("entry", "count").out == "1\n"
    assert caadmin("health", "--agent").code == 0
    assert caadmin("svid", "fetch").code == 0


def test_someone_without_an_entry_is_denied(live: Caadmin, running: Pair, entry: str) -> None:
    running.delete_entry(entry)
    ran = live("svid", "fetch")
    assert ran.code == 3
    assert "no identity issued" in ran.err


@pytest.mark.parametrize("blob", [b"\x30", b"\x30\x05ab", b"\x04\x01a", b"\x30\x00", b"\x30\x82\x01", b"\x30\x80ab"])
def test_what_is_no_der_is_refused(blob: bytes) -> None:
    with pytest.raises(InvalidArgument, match="no DER"):
        split_der(blob)


def test_concatenated_certificates_are_split_where_they_end() -> None:
    short, long = b"\x30\x02ab", b"\x30\x81\x80" + bytes(128)
    assert split_der(short + long + short) == [short, long, short]
