"""How a test run ends where something is missing: with a table of what was not exercised, and in CI with a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.reason_codes import ROOT

TESTS = """
import pytest
from tests.support.real import require

@pytest.mark.parametrize("number", [1, 2])
def test_sun(number):
    require("Sunshine", available=False, how="wait for summer")

def test_other():
    pytest.skip("not today")

def test_nothing_missing():
    require("air", available=True, how="breathe")
"""


def run(directory: Path, *more: str, require_real: bool = False) -> subprocess.CompletedProcess[str]:
    """These tests under the project's own conftest."""
    (directory / "test_some.py").write_text(TESTS)
    environment = {k: v for k, v in os.environ.items() if k != "BURGEE_REQUIRE_REAL" and not k.startswith("PYTEST_")}
    if require_real:
        environment["BURGEE_REQUIRE_REAL"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(directory), str(directory), *more]
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("more", [(), ("-n", "1")], ids=["alone", "with workers"])
def test_a_run_ends_with_what_was_not_exercised_and_the_command_that_would(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    done = run(tmp_path, *more)
    assert done.returncode == 0, done.stdout
    table = done.stdout.partition("not exercised on this machine")[2].splitlines()
    assert "   2 test(s)  Sunshine" in table
    assert table[table.index("   2 test(s)  Sunshine") + 1].strip() == "to run them: wait for summer"
    assert "   1 test(s)  not today" in table
    assert not any("air" in line for line in table)


@pytest.mark.parametrize("more", [(), ("-n", "1")], ids=["alone", "with workers"])
def test_where_nothing_may_be_skipped_a_skipped_test_fails_the_run(tmp_path: Path, more: tuple[str, ...]) -> None:
    done = run(tmp_path, "-k", "other", *more, require_real=True)
    assert done.returncode == 1, done.stdout
    assert "1 skipped" in done.stdout


def test_where_nothing_may_be_skipped_a_missing_part_is_a_failed_test(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "sun", require_real=True)
    assert done.returncode == 1
    assert "needs Sunshine: wait for summer" in done.stdout
    assert "2 failed" in done.stdout


def test_without_anything_missing_there_is_no_table(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "nothing_missing", require_real=True)
    assert done.returncode == 0, done.stdout
    assert "not exercised" not in done.stdout
