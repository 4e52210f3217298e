"""The systemd units: systemd accepts them, they stay hardened, and the programs work as confined as they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ca import serve as server_program
from ca.cli.connection import AGENT_SOCKET, SERVER_SOCKET
from ca.identity.endpoint import DEFAULT_SOCKET
from sds import agent as agent_program
from tests.docs.reason_codes import ROOT
from tests.support.pair import pair
from tests.support.real import require

UNITS = ROOT / "docs" / "systemd"
NAMES = ("burgee-server", "burgee-agent")
BLINDING = ("ProtectProc", "ProcSubset", "PrivateUsers", "PrivateTmp", "PrivatePIDs")
PR_SET_MDWE = 65
MDWE_REFUSE_EXEC_GAIN = 1


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    require("systemd-analyze", found is not None, "apt-get install systemd")
    assert found is not None
    return found


def settings(name: str) -> dict[str, str]:
    lines = (UNITS / f"{name}.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line))


def installed(name: str, directory: Path) -> Path:
    """The unit as if the program were installed here: systemd looks whether it is."""
    unit = directory / f"{name}.service"
    text = (UNITS / unit.name).read_text()
    assert "/opt/burgee/bin/burgee" in text
    unit.write_text(text.replace("/opt/burgee/bin/burgee", "/bin/true"))
    return unit


@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_it_without_a_word(name: str, analyze: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [analyze, "verify", "--man=no", installed(name, tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "most"), [("burgee-server", 20), ("burgee-agent", 40)])
def test_it_stays_hardened(name: str, most: int, analyze: str, tmp_path: Path) -> None:
    """systemd's own measure, in tenths: 0 is closed, 100 is open."""
    command = [analyze, "security", "--offline=true", f"--threshold={most}", installed(name, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_agent_can_see_its_workloads() -> None:
    found = settings("burgee-agent")
    assert not set(BLINDING) & set(found)
    assert found["ProtectHome"] == "read-only"
    assert set(found["CapabilityBoundingSet"].split()) == {"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_CHOWN"}


def test_the_directories_are_those_that_caadmin_looks_in() -> None:
    for name, socket in (("burgee-server", SERVER_SOCKET), ("burgee-agent", AGENT_SOCKET)):
        assert socket.parent.parent == Path("/var/lib") / settings(name)["StateDirectory"]
    assert Path(DEFAULT_SOCKET).parent == Path("/run") / settings("burgee-agent")["RuntimeDirectory"]


def test_the_page_names_what_a_reload_applies() -> None:
    page = (ROOT / "docs" / "operations-systemd.md").read_text()
    for who, live in (("server", server_program.LIVE), ("agent", agent_program.LIVE)):
        (row,) = re.findall(rf"^\| {who} \| (`.*`) \|$", page, re.MULTILINE)
        assert set(re.findall(r"`([^`]+)`", row)) == live


def test_the_programs_run_without_writable_and_executable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `MemoryDenyWriteExecute` forbids, by the kernel's own switch, which children inherit."""
    supported = (
        subprocess.run([sys.executable, "-c", f"{_DENY}\nraise SystemExit(denied)"], check=False).returncode == 0
    )
    require("memory-deny-write-execute", supported, "run on Linux 6.3 or later")
    real = subprocess.Popen

    def confined(command: list[str], **options: object) -> object:
        assert command[1] == "-m"
        run = f"{_DENY}\nassert denied == 0\nimport os, sys\nos.execv(sys.executable, {command!r})"
        return real([sys.executable, "-c", run], **options)  # type: ignore[call-overload]

    monkeypatch.setattr("tests.support.pair.subprocess.Popen", confined)
    with pair() as running:
        running.create_entry("/w")
        assert running.status().state == "OK"


_DENY = f"import ctypes\ndenied = ctypes.CDLL(None).prctl({PR_SET_MDWE}, {MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) and 1"
