"""The corpus holds, and a second of fuzzing finds nothing new; `make fuzz` goes on for longer."""

from __future__ import annotations

import importlib.util
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
def test_a_second_of_each_target_breaks_nothing(tmp_path: Path):
    options = ["--seconds", str(len(TARGETS)), "--jobs", "2", "--seed", "1", "--work", str(tmp_path / "work")]
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *options, "--crashes", str(tmp_path / "crashes")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = "".join(f"\n{file.parent.name}: {file.read_bytes()!r}" for file in tmp_path.glob("crashes/*/*"))
    assert run.returncode == 0, run.stdout + run.stderr + found
    table = run.stdout[run.stdout.index("target ") :]
    executions = {row.split()[0]: int(row.split()[1]) for row in table.splitlines()[1:]}
    assert set(executions) == {*TARGETS, "all"}
    assert min(executions.values()) > 0, table


@needs_atheris
def test_what_breaks_is_reported_and_saved(tmp_path: Path):
    """The whole way from a broken promise to the command that repeats it, with a promise that is easily broken."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import sys\n"
        "from tests.fuzz import __main__ as main, targets, harness\n"
        "def run(data):\n"
        "    assert data[:1] != b'!', 'no exclamations'\n"
        "targets.TARGETS['endpoint'] = harness.Target(name='endpoint', run=run, words=(b'!',))\n"
        "sys.exit(main.main())\n"
    )
    options = ["--target", "endpoint", "--seconds", "20", "--seed", "1", "--work", str(tmp_path / "work")]
    run = subprocess.run(
        [sys.executable, str(script), *options, "--crashes", str(tmp_path / "crashes")],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(r"endpoint: BROKEN after \d+ executions: AssertionError: no exclamations", run.stdout)
    (saved,) = (tmp_path / "crashes" / "endpoint").iterdir()
    assert saved.read_bytes().startswith(b"!")
    assert f"python -m tests.fuzz replay {saved}" in run.stdout


def test_a_hang_and_a_death_are_failures(tmp_path: Path):
    log = tmp_path / "x.log"
    log.write_text("#2\tINITED cov: 5 ft: 6 corp: 1/1b\n#900\tpulse  cov: 7 ft: 9\n==1== ERROR: libFuzzer: timeout after 20\n")
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
