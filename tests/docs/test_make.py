"""What a newcomer meets first: `make help`, and a machine that lacks one of the few things that must be there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.reason_codes import ROOT

TOOLS = ("bash", "make", "grep", "awk", "git")


def make(target: str, path: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Typed in the checkout by somebody whose PATH is `path` alone."""
    command = [str(shutil.which("make")), "--no-print-directory", "-s", target, f"SHELL={shutil.which('bash')}", *more]
    environment = {"PATH": path, "HOME": "/nonexistent"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with the needed programs and nothing else."""
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    (tmp_path / "python3").symlink_to(Path(sys.base_prefix) / "bin/python3")  # no wrapper that needs more
    return tmp_path


def fake_python(programs: Path, script: str) -> None:
    """In the place of the machine's Python."""
    (programs / "python3").unlink()
    (programs / "python3").write_text(f"#!{shutil.which('bash')}\n{script}\n")
    (programs / "python3").chmod(0o755)


def test_help_lists_the_targets() -> None:
    done = make("help", os.environ["PATH"])
    listed = re.findall(r"^  make (\S+) +\S", done.stdout, re.M)
    assert {"up", "test", "check", "proto", "bench", "docs", "lock", "clean"} <= set(listed)
    assert len(listed) == len(set(listed))


def test_who_has_everything_hears_nothing(programs: Path) -> None:
    done = make("prerequisites", str(programs))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("git", "git is missing; on Debian: apt-get install git"),
        ("python3", "Python 3.11 is missing; on Debian: apt-get install python3 python3-venv"),
    ],
)
def test_a_missing_program_is_named_with_its_fix(programs: Path, missing: str, said: str) -> None:
    (programs / missing).unlink()
    done = make("prerequisites", str(programs))
    assert done.returncode != 0
    assert f"make: {said}" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('[[ "$*" != *version_info* ]]', "is older than Python 3.11; set PYTHON=/path/to/python3.11"),
        ('[[ "$*" != *venv* ]]', "Python's venv module is missing; on Debian: apt-get install python3-venv"),
    ],
    ids=["too old", "without venv"],
)
def test_a_python_that_will_not_do_is_named_with_its_fix(programs: Path, script: str, said: str) -> None:
    """A Python that fails at exactly one of the questions that it is asked."""
    fake_python(programs, script)
    done = make("prerequisites", str(programs))
    assert done.returncode != 0
    assert said in done.stderr


def test_nothing_is_installed_before_the_machine_is_looked_at(programs: Path) -> None:
    """`make up` and everything else that needs the environment says what is missing first."""
    (programs / "git").unlink()
    environment = "VENV=" + str(programs / "venv")
    for target in ("up", "test", "check"):
        done = make(target, str(programs), environment)
        assert done.returncode != 0
        assert "git is missing" in done.stderr
    assert not (programs / "venv").exists()
