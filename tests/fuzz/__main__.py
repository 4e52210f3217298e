"""Fuzzing guided by coverage: `python -m tests.fuzz` runs every target, `python -m tests.fuzz replay FILE…` repeats.

All targets are imported, and instrumented, once; each then runs in a child of its own, which a crash, a hang or a
lack of memory ends without the others. Saved inputs are named for what they show in `tests/fuzz/corpus`.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from tests.fuzz.report import Result, print_table, read_result

HERE = Path(__file__).parent
PACKAGES = ["attestor", "ca", "policy", "sds", "yaml"]
UNIT_TIMEOUT_SECONDS = 20
RSS_LIMIT_MB = 1024


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz Burgee's parsers and listeners.")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together (600)")
    parser.add_argument("--runs", type=int, default=-1, help="executions of each target at most (no bound)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time (as many as cores)")
    parser.add_argument("--target", action="append", default=[], help="only this target; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="for the fuzzer's choices; 0 takes a new one each time")
    parser.add_argument("--work", type=Path, default=Path(".cache/fuzz"), help="found inputs and logs (.cache/fuzz)")
    parser.add_argument("--crashes", type=Path, default=HERE / "corpus", help="where crashing inputs are saved")
    return parser.parse_args()


def main() -> int:
    if sys.argv[1:2] == ["replay"]:
        return replay([Path(name) for name in sys.argv[2:]])
    options = arguments()
    try:
        import atheris
    except ImportError:
        print("needs atheris, which has wheels for Linux on x86_64; `replay` works without it", file=sys.stderr)
        return 2
    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=PACKAGES):  # it names every module
        from tests.fuzz.targets import TARGETS
    unknown = set(options.target) - TARGETS.keys()
    if unknown:
        print(f"no such target: {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    names = options.target or list(TARGETS)
    rounds = -(-len(names) // options.jobs)
    seconds = max(1, int(options.seconds / rounds))
    options.work.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="bg-")
    try:
        results = run_all(names, seconds, options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print_table(results, seconds)
    return 1 if any(result.failed for result in results) else 0


def run_all(names: list[str], seconds: int, options: argparse.Namespace, scratch: str) -> list[Result]:
    """`jobs` children at a time, in the order of the names."""
    waiting, running, results = list(names), {}, {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            running[start(name, seconds, options, scratch)] = name
        pid, status = os.wait()
        name = running.pop(pid)
        results[name] = read_result(name, options.work / f"{name}.log", os.waitstatus_to_exitcode(status))
        print(results[name].line(), flush=True)
    return [results[name] for name in names]


def start(name: str, seconds: int, options: argparse.Namespace, scratch: str) -> int:
    """A child that fuzzes one target; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(options.work / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        tempfile.tempdir = scratch
        fuzz(name, seconds, options)
    except SystemExit:
        pass  # how the fuzzer's Python side ends on a broken promise
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    # Straight to C's exit, where the fuzzer saves the input: this stack is the parent's and not ours to unwind.
    ctypes.CDLL(None).exit(3)
    os._exit(3)


def fuzz(name: str, seconds: int, options: argparse.Namespace) -> None:
    """Does not return: the fuzzer ends the process."""
    import atheris

    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    found, crashes = options.work / name, options.crashes / name
    for directory in (found, crashes):
        directory.mkdir(parents=True, exist_ok=True)
    corpus = [os.fspath(directory) for directory in (found, target.corpus) if directory.is_dir()]
    dictionary = options.work / f"{name}.dict"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    argv = [
        f"fuzz-{name}",
        *corpus,
        f"-artifact_prefix={crashes}/",
        f"-dict={dictionary}",
        f"-max_total_time={seconds}",
        f"-runs={options.runs}",
        f"-max_len={target.max_bytes}",
        f"-timeout={UNIT_TIMEOUT_SECONDS}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-seed={options.seed}",
        "-print_final_stats=1",
    ]
    mutate = target.mutate
    extras = {}
    if mutate is not None:
        extras["custom_mutator"] = lambda data, size, seed: mutate(data, size, seed, atheris.Mutate)
    atheris.Setup(argv, target.check, **extras)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def replay(files: list[Path]) -> int:
    """Runs saved inputs, target by the name of the directory; a broken promise shows its traceback."""
    from tests.fuzz.targets import TARGETS

    for file in files:
        TARGETS[file.resolve().parent.name].check(file.read_bytes())
        print(f"{file}: holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
