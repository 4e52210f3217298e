"""The corpus holds, and a second of fuzzing finds nothing new; `make fuzz` goes on for longer."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ca.errors import InvalidArgument
from tests.fuzz.harness import CORPUS, Target, check_refusal, outcome
from tests.fuzz.report import read_result
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="needs atheris: it has wheels for Linux on x86_64 alone; the corpus is replayed without it",
)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_holds(name: str):
    files = sorted(TARGETS[name].corpus.iterdir())
    assert files, "every target begins with examples"
    for file in files:
        try:
            TARGETS[name].check(file.read_bytes())
        except Exception as error:
            error.add_note(f"repeat: python -m tests.fuzz replay {file.relative_to(ROOT)}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_degenerate_inputs_hold(name: str):
    for data in (b"", b"\0", b"\xff" * 64, b"\n" * 1000, bytes(range(256)), b"0\x80" * 500):
        TARGETS[name].check(data[: TARGETS[name].max_bytes])


def test_the_corpus_is_of_known_targets_and_holds_no_private_key():
    directories = {path.name for path in CORPUS.iterdir()}
    assert directories == set(TARGETS)
    for file in CORPUS.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert len(data) <= 32 * 1024, f"{file} is large"
            assert b"PRIVATE KEY" not in data, f"{file} holds a private key"


@needs_atheris
def test_a_second_of_each_target_breaks_nothing_and_what_breaks_is_saved(tmp_path: Path):
    """One run, with one target more whose promise is easily broken, down to the command that repeats it."""
    script = tmp_path / "with_a_broken_one.py"
    script.write_text(
        "import sys\n"
        "from tests.fuzz import __main__ as main, targets, harness\n"
        "def run(data):\n"
        "    assert data[:1] != b'!', 'no exclamations'\n"
        "targets.TARGETS['broken'] = harness.Target(name='broken', run=run, words=(b'!',))\n"
        "sys.exit(main.main())\n"
    )
    work, crashes = tmp_path / "work", tmp_path / "crashes"
    options = ["--seconds", "1", "--runs", "2000", "--jobs", "2", "--seed", "1", "--work", work, "--crashes", crashes]
    run = subprocess.run(
        [sys.executable, script, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    table = [row.split() for row in run.stdout[run.stdout.index("target ") :].splitlines()[1:]]
    assert {row[0] for row in table} == {*TARGETS, "broken", "all"}, run.stdout + run.stderr
    assert min(int(row[1]) for row in table) > 0, run.stdout
    saved = list(crashes.glob("*/*"))
    assert [row[0] for row in table if row[-1] == "BROKEN"] == ["broken"], run.stdout + _shown(saved)
    assert run.returncode == 1
    assert re.search(r"broken: BROKEN after \d+ executions: AssertionError: no exclamations", run.stdout)
    (file,) = saved
    assert file.read_bytes().startswith(b"!")
    assert f"python -m tests.fuzz replay {file}" in run.stdout


def _shown(saved: list[Path]) -> str:
    return "".join(f"\n{file.parent.name}: {file.read_bytes()!r}" for file in saved)


def test_a_hang_and_a_death_are_failures(tmp_path: Path):
    log = tmp_path / "x.log"
    log.write_text(
        "#2\tINITED cov: 5 ft: 6 corp: 1/1b\n#900\tpulse  cov: 7 ft: 9\n==1== ERROR: libFuzzer: timeout after 20\n"
    )
    result = read_result("x", log, 70)
    assert (result.failed, result.executions, result.coverage, result.features) == (True, 900, (5, 7), (6, 9))
    assert result.error == "ERROR: libFuzzer: timeout after 20"
    assert read_result("x", log, -9).error


def test_the_promises_are_looked_at():
    def refuse(detail: str, reason: str = "REASON") -> None:
        raise InvalidArgument(detail, reason=reason)

    assert outcome(refuse, "fine", refusal=InvalidArgument) is None
    for detail, reason in (("two\nlines", "REASON"), ("", "REASON"), ("a" * 20_000, "REASON"), ("fine", "reason")):
        with pytest.raises(AssertionError):
            outcome(refuse, detail, reason, refusal=InvalidArgument)
    with pytest.raises(KeyError):
        outcome({}.__getitem__, "x", refusal=InvalidArgument)
    with pytest.raises(InvalidArgument):
        check_refusal(InvalidArgument("x"))


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.fuzz.harness.MAX_CPU_SECONDS", 0.0)
    with pytest.raises(AssertionError, match="took"):
        Target(name="x", run=lambda data: sum(range(100_000)) and None).check(b"")
