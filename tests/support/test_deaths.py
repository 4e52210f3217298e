"""A test process that dies or hangs ends the run soon, as failed, and says where it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BESIDE = "\ndef test_beside_it(): pass\n"


def run(folder: Path, tests: str, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A suite of its own with our configuration."""
    plugins = '["tests.support.faults", "tests.support.own_process"]'
    (folder / "conftest.py").write_text(f"pytest_plugins = {plugins}\n{before}")
    (folder / "test_it.py").write_text(tests + BESIDE)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *options, str(folder)],
        env=os.environ | {"BURGEE_CACHE": str(folder), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_worker_that_crashes(tmp_path: Path) -> None:
    ended = run(tmp_path, "import faulthandler\ndef test_it(): faulthandler._sigsegv()", "-n1", "--dist=loadgroup")
    assert ended.returncode == 1, ended.stdout
    assert "crashed while running 'test_it.py::test_it'" in ended.stdout
    assert re.search(r"a worker died.*\n.*ended by signal 11\nFatal Python error: Segmentation fault\n", ended.stdout)
    assert "in test_it" in ended.stdout
    assert not list((tmp_path / "faults").iterdir())


def test_a_test_out_of_time_fails_and_the_others_run_on(tmp_path: Path) -> None:
    hangs = "import time\ndef test_it(): time.sleep(60)"
    ended = run(tmp_path, hangs, "-n1", "--dist=loadgroup", "--timeout=1")
    assert "1 failed, 1 passed" in ended.stdout
    assert "Timeout (>1.0s)" in ended.stdout
    assert "a worker died" not in ended.stdout


def test_a_test_that_cannot_be_interrupted(tmp_path: Path) -> None:
    """As in foreign code."""
    hangs = "import signal, time\ndef test_it():\n signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
    short = "def pytest_configure():\n import tests.support.faults as faults\n faults.GRACE_SECONDS = 1\n"
    ended = run(tmp_path, hangs + " time.sleep(60)", "-n1", "--dist=loadgroup", "--timeout=1", before=short)
    assert ended.returncode == 1, ended.stdout
    assert re.search(r"a worker died.*\n.*ended with status 1\nTimeout \(0:00:02\)!\n", ended.stdout)
    assert "in test_it" in ended.stdout


def test_foreign_code_that_crashes_fails_its_tests_alone(tmp_path: Path) -> None:
    marked = (
        "import os, pytest\n"
        "@pytest.mark.real('SoftHSM')\ndef test_good(): assert 'BURGEE_TEST_CHILD' in os.environ\n"
        "@pytest.mark.real('SoftHSM')\ndef test_bad(): assert False\n"
        "@pytest.mark.real('SoftHSM')\ndef test_it(): os.abort()\n"
    )
    for options in ([], ["-n2", "--dist=loadgroup"]):
        ended = run(tmp_path, marked, *options)
        assert "2 failed, 2 passed" in ended.stdout, ended.stdout
        assert "the process of foreign code ended with status -6\n" in ended.stdout
        assert "Fatal Python error: Aborted" in ended.stdout
