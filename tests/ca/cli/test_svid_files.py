"""`svid watch --write`: files for programs that cannot ask for themselves."""

from __future__ import annotations

import os
import shlex
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ca.cli.svid_files import SvidFiles, command_line, write_all
from ca.cli.workload import workload_client
from ca.errors import FailedPrecondition, InvalidArgument, NotFound
from ca.identity.bundle_pem import parse_certificates
from ca.proto.burgee import workload_pb2
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair, until
from tests.support.tls_client import uri_of

ID = f"spiffe://{TRUST_DOMAIN}"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def entry(running: Pair) -> str:
    return running.create_entry("/files")


@pytest.fixture
def response(running: Pair, entry: str) -> workload_pb2.X509SVIDResponse:
    def fetched() -> workload_pb2.X509SVIDResponse:
        with workload_client(f"unix://{running.workload_socket}") as client:
            return client.fetch_x509_once(10)

    return until("an SVID", fetched)


def test_once(live: Caadmin, entry: str, tmp_path: Path) -> None:
    ran = live("svid", "watch", "--write", "tls", "--once", "--reload", f"{sys.executable} -c 'print(6 * 7)'")
    assert ran.code == 0, ran.err
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    names = {path.name for path in (tmp_path / "tls").iterdir()}
    assert names == {"svid.key", "svid.pem", "bundle.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()} == {0o600}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls/svid.pem", tmp_path / "tls/svid.key")
    context.load_verify_locations(tmp_path / "tls/bundle.pem")


def test_a_failed_reload_command_is_told(live: Caadmin, entry: str) -> None:
    ran = live("svid", "watch", "--write", "tls", "--once", "--reload", "false")
    assert (ran.code, "RELOAD_COMMAND" in ran.err) == (1, True)
    ran = live("svid", "watch", "--write", "tls", "--once", "--reload", "/no/such/program")
    assert (ran.code, "RELOAD_COMMAND" in ran.err) == (1, True)


def test_options_that_do_not_fit(live: Caadmin) -> None:
    assert live("svid", "watch", "--reload", "true").code == 2
    assert live("svid", "watch", "--write", "d", "--reload", "it's").code == 2
    with pytest.raises(InvalidArgument):
        command_line("  ")
    assert command_line("a 'b c' $(d)") == ["a", "b c", "$(d)"]


def test_what_did_not_change_is_not_written_again(response: workload_pb2.X509SVIDResponse, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"open({str(mark)!r}, 'a').write('x')"
    files = SvidFiles(tmp_path / "d", [sys.executable, "-c", script])
    assert len(files.take(response)) == 3
    before = (tmp_path / "d/svid.pem").stat().st_ino
    assert files.take(response) == []
    assert (tmp_path / "d/svid.pem").stat().st_ino == before
    assert mark.read_text() == "x"
    federated = workload_pb2.X509SVIDResponse()
    federated.CopyFrom(response)
    federated.federated_bundles["spiffe://other.example"] = response.svids[0].bundle
    assert str(tmp_path / "d/federated_bundle.other.example.pem") in files.take(federated)
    assert (tmp_path / "d/svid.pem").stat().st_ino != before
    assert files.take(response)
    assert not (tmp_path / "d/federated_bundle.other.example.pem").exists()
    assert mark.read_text() == "xxx"


def test_a_command_that_failed_runs_again_for_the_same_files(
    response: workload_pb2.X509SVIDResponse, tmp_path: Path
) -> None:
    mark, works = tmp_path / "mark", tmp_path / "works"
    works.touch()
    script = f"import os; open({str(mark)!r}, 'a').write('x'); os.stat({str(works)!r})"
    files = SvidFiles(tmp_path / "d", [sys.executable, "-c", script])
    files.take(response)
    works.unlink()
    changed = workload_pb2.X509SVIDResponse()
    changed.CopyFrom(response)
    changed.federated_bundles["spiffe://other.example"] = response.svids[0].bundle
    for _ in range(2):
        with pytest.raises(FailedPrecondition):
            files.take(changed)
    works.touch()
    assert files.take(changed)
    assert files.take(changed) == []
    assert mark.read_text() == "xxxx"


def test_what_a_killed_run_had_begun_is_removed(response: workload_pb2.X509SVIDResponse, tmp_path: Path) -> None:
    left, fresh = tmp_path / ".svid.key.00ff", tmp_path / ".svid.key.11ff"
    for path in (left, fresh, tmp_path / ".other.key.00ff"):
        path.write_text("k")
    os.utime(left, (0, 0))
    SvidFiles(tmp_path).take(response)
    assert not left.exists()
    assert fresh.exists(), "somebody may be writing it now"
    assert (tmp_path / ".other.key.00ff").exists()


def test_all_of_several_svids_are_written(response: workload_pb2.X509SVIDResponse, tmp_path: Path) -> None:
    """The first under the names that `--svid-dir` reads."""
    several = workload_pb2.X509SVIDResponse()
    several.CopyFrom(response)
    several.svids.add().CopyFrom(response.svids[0])
    several.federated_bundles["spiffe://other.example"] = response.svids[0].bundle
    (tmp_path / "federated_bundle.gone.example.pem").touch()
    names = [Path(name).name for name in write_all(tmp_path, several)]
    assert names == [
        *("svid.key", "svid.pem", "bundle.pem"),
        *("svid.1.key", "svid.1.pem", "bundle.1.pem"),
        "federated_bundle.other.example.pem",
    ]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert (tmp_path / "svid.1.key").read_bytes() == (tmp_path / "svid.key").read_bytes()


def test_a_name_cannot_lead_out_of_the_directory(response: workload_pb2.X509SVIDResponse, tmp_path: Path) -> None:
    hostile = workload_pb2.X509SVIDResponse()
    hostile.CopyFrom(response)
    hostile.federated_bundles["spiffe://../../evil"] = response.svids[0].bundle
    with pytest.raises(InvalidArgument):
        SvidFiles(tmp_path / "d").take(hostile)
    assert not (tmp_path / "d").exists()


def test_the_svid_that_was_asked_for(response: workload_pb2.X509SVIDResponse, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as refused:
        SvidFiles(tmp_path, spiffe_id=f"{ID}/other").take(response)
    assert f"{ID}/files" in refused.value.hint
    assert SvidFiles(tmp_path, spiffe_id=f"{ID}/files").take(response)


def test_a_command_that_hangs(
    response: workload_pb2.X509SVIDResponse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.cli.svid_files.RELOAD_SECONDS", 0.2)
    with pytest.raises(FailedPrecondition, match="no end within"):
        SvidFiles(tmp_path, ["sleep", "60"]).take(response)


def test_what_failed_is_tried_again_without_another_update(running: Pair, entry: str, tmp_path: Path) -> None:
    """First the directory cannot be made, then the reload command fails, and the SVID stays the same all the while."""
    (tmp_path / "d").write_text("in the way")
    go_on, mark = tmp_path / "go-on", tmp_path / "mark"
    script = f"import os; open({str(mark)!r}, 'a').write('x'); os.stat({str(go_on)!r})"
    command = [
        *(sys.executable, "-m", "ca.cli.caadmin", "svid", "watch", "--write", str(tmp_path / "d"), "--count", "2"),
        *("--endpoint", f"unix://{running.workload_socket}", "--reload", shlex.join([sys.executable, "-c", script])),
    ]
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}
    log = tmp_path / "log"
    with log.open("wb") as said, subprocess.Popen(command, stderr=said, env=environment) as process:
        until("it could not write", lambda: "(FILE)" in log.read_text())
        (tmp_path / "d").unlink()
        until("it wrote, and told in vain", lambda: "(RELOAD_COMMAND)" in log.read_text() and mark.exists())
        go_on.touch()
        until("it told again", lambda: "wrote" in log.read_text())
        assert len(mark.read_text()) >= 2
        assert process.poll() is None, "what was tried again counts once"
        process.terminate()


def id_in(chain: Path) -> str:
    """Of the leaf, which comes first."""
    return uri_of(parse_certificates(chain.read_bytes())[0])


def test_a_restarted_agent_is_found_again(running: Pair, entry: str, tmp_path: Path) -> None:
    """The files stay while the agent is away; a new SVID after its return is written and told of."""
    mark = tmp_path / "mark"
    script = f"open({str(mark)!r}, 'a').write('x')"
    command = [
        *(sys.executable, "-m", "ca.cli.caadmin", "svid", "watch", "--write", str(tmp_path / "d")),
        *("--endpoint", f"unix://{running.workload_socket}", "--reload", f'{sys.executable} -c "{script}"'),
    ]
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        until("the first files", lambda: mark.exists() and mark.read_text() == "x")
        running.stop("agent")
        assert (tmp_path / "d/svid.pem").exists()
        running.start_agent(token=False)
        running.create_entry("/files2", selector=f"unix:uid:{os.getuid()}")
        running.delete_entry(entry)
        until("the other SVID", lambda: id_in(tmp_path / "d/svid.pem") == f"{ID}/files2", seconds=60)
        until("the command ran", lambda: len(mark.read_text()) >= 2)
        process.terminate()
        assert process.stderr is not None
        assert "trying again in" in process.stderr.read()
