"""Administration over the network: with files or with the Workload API, and whom neither side believes."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from ca.cli.workload import workload_client
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair, free_port, until
from tests.support.server import running_server

ID = f"spiffe://{TRUST_DOMAIN}"


@pytest.fixture(scope="module")
def boss(running: Pair) -> str:
    """This test's user is an administrator, and somebody without rights, too."""
    running.create_entry("/clerk")
    running.create_entry("/boss", admin=True)

    def given() -> set[str]:
        with workload_client(f"unix://{running.workload_socket}") as client:
            return {svid.spiffe_id for svid in client.fetch_x509_once(10).svids}

    until("both SVIDs", lambda: given() == {f"{ID}/boss", f"{ID}/clerk"})
    return f"127.0.0.1:{running.port}"


@pytest.fixture
def remote(live: Caadmin, boss: str, monkeypatch: pytest.MonkeyPatch) -> Caadmin:
    """The program without a local socket, and with the boss's files in `d`."""
    assert live("svid", "watch", "--write", "d", "--once", "--spiffe-id", f"{ID}/boss").code == 0
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", "/nowhere/admin.sock")
    return live


def test_with_files(remote: Caadmin, boss: str) -> None:
    ran = remote("entry", "count", "--server", boss, "--svid-dir", "d", "-o", "json")
    assert (ran.code, ran.json) == (0, {"count": 2}), ran.err
    made = remote("token", "create", "--server", boss, "--svid-dir", "d")
    assert made.code == 0, made.err
    records = remote("audit", "--server", boss, "--svid-dir", "d", "--actor", f"{ID}/boss", "-o", "json").json[
        "records"
    ]
    assert [record["call"].rpartition("/")[2] for record in records] == ["CreateJoinToken"]
    assert records[0]["origin"].startswith("127.0.0.1:")


def test_what_was_just_minted_is_let_in(live: Caadmin, boss: str) -> None:
    assert live("svid", "mint", "x509", "--spiffe-id", f"{ID}/boss", "--write", "m").code == 0
    ran = live("entry", "count", "--server", boss, "--svid-dir", "m")
    assert (ran.code, ran.out) == (0, "2\n"), ran.err


def test_so_is_what_was_just_fetched(live: Caadmin, boss: str) -> None:
    """As the boss, or known as the clerk, whichever SVID comes first."""
    assert live("svid", "fetch", "--write", "f").code == 0
    ran = live("entry", "count", "--server", boss, "--svid-dir", "f")
    assert ran.code == 0 or "(TIER)" in ran.err, ran.err


def test_by_environment_and_batches_in_one_connection(
    remote: Caadmin, boss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURGEE_SERVER", boss)
    monkeypatch.setenv("BURGEE_SVID_DIR", "d")
    assert remote("health").code == 0
    assert remote("bundle", "show").out.startswith("-----BEGIN CERTIFICATE-----")


def test_with_the_workload_api(remote: Caadmin, boss: str) -> None:
    ran = remote("entry", "count", "--server", boss, "--as", f"{ID}/boss", "-o", "json")
    assert (ran.code, ran.json) == (0, {"count": 2}), ran.err
    denied = remote("entry", "count", "--server", boss, "--as", f"{ID}/clerk")
    assert (denied.code, "(TIER)" in denied.err) == (3, True), denied.err
    unknown = remote("entry", "count", "--server", boss, "--as", f"{ID}/nobody")
    assert (unknown.code, "SVID_NOT_GIVEN" in unknown.err) == (2, True)
    assert f"{ID}/clerk" in unknown.err


async def test_a_server_of_another_authority_is_not_believed(remote: Caadmin) -> None:
    """Nothing is asked of it: the relay ends the connection before a byte has passed."""
    async with running_server(trust_domain=TRUST_DOMAIN) as other:
        address = f"{other.server.address[0]}:{other.server.address[1]}"
        ran = await asyncio.to_thread(remote, "entry", "count", "--server", address, "--svid-dir", "d", "-o", "json")
        assert ran.code == 3
        assert "SVID_UNTRUSTED" in ran.err, ran.err
        assert await other.server.store.audit.last() == 0


def test_nobody_there(remote: Caadmin) -> None:
    ran = remote("entry", "count", "--server", f"127.0.0.1:{free_port()}", "--svid-dir", "d")
    assert (ran.code, "SERVER_UNREACHABLE" in ran.err) == (1, True)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: (d / "svid.key").unlink(), "FILE"),
        (lambda d: (d / "svid.key").chmod(0o644), "NOT_PRIVATE"),
        (lambda d: (d / "svid.key").write_text("nonsense"), "SVID_KEY_MISMATCH"),
        (lambda d: (d / "svid.pem").write_text("nonsense"), "SVID_"),
        (lambda d: (d / "svid.pem").write_bytes((d / "bundle.pem").read_bytes()), "SVID_"),
    ],
)
def test_files_that_do_not_fit(remote: Caadmin, boss: str, spoil: object, reason: str) -> None:
    assert callable(spoil)
    shutil.copytree("d", "spoilt")
    spoil(Path("spoilt"))
    ran = remote("entry", "count", "--server", boss, "--svid-dir", "spoilt")
    assert ran.code != 0
    assert reason in ran.err, ran.err
    assert "Traceback" not in ran.err


def test_arguments(remote: Caadmin) -> None:
    assert remote("entry", "count", "--server", "nowhere", "--svid-dir", "d").code == 2
    assert remote("entry", "count", "--as", f"{ID}/boss").code == 2
