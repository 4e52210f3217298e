"""What a fuzzer's log says: executions, growth of coverage, and the input that broke a promise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_COVERAGE = re.compile(r"cov: (\d+) ft: (\d+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_PROGRESS = re.compile(r"^#(\d+)\s", re.MULTILINE)
_SAVED = re.compile(r"Test unit written to (\S+)")
_ERROR = re.compile(r"=== Uncaught Python exception: ===\n(.*)|^==\d+== (ERROR.*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Result:
    """`coverage` and `features` from the corpus alone to the end."""

    name: str
    executions: int
    coverage: tuple[int, int]
    features: tuple[int, int]
    failed: bool
    error: str
    saved: str
    log: Path

    def line(self) -> str:
        if not self.failed:
            return f"{self.name}: {self.executions} executions, nothing broke"
        parts = [f"{self.name}: BROKEN after {self.executions} executions: {self.error}", f"  see {self.log}"]
        if self.saved:
            parts.append(f"  saved {self.saved}\n  repeat: python -m tests.fuzz replay {self.saved}")
        return "\n".join(parts)


def read_result(name: str, log: Path, exit_code: int) -> Result:
    text = log.read_text(errors="replace")
    counts = [(int(a), int(b)) for a, b in _COVERAGE.findall(text)] or [(0, 0)]
    final = _EXECUTIONS.search(text)
    progress = [int(number) for number in _PROGRESS.findall(text)]
    error = _ERROR.search(text)
    saved = _SAVED.search(text)
    return Result(
        name=name,
        executions=int(final[1]) if final else max(progress, default=0),
        coverage=(counts[0][0], counts[-1][0]),
        features=(counts[0][1], counts[-1][1]),
        failed=exit_code != 0,
        error=(error[1] or error[2]) if error else f"exit code {exit_code}",
        saved=saved[1] if saved else "",
        log=log,
    )


def print_table(results: list[Result], seconds: int) -> None:
    print(f"\n{'target':18} {'executions':>11} {'per second':>11} {'coverage':>15} {'features':>15}")
    for result in results:
        coverage, features = (f"{first} → {last}" for first, last in (result.coverage, result.features))
        rate = result.executions // seconds
        mark = "  BROKEN" if result.failed else ""
        print(f"{result.name:18} {result.executions:11} {rate:11} {coverage:>15} {features:>15}{mark}")
    print(f"{'all':18} {sum(result.executions for result in results):11}   ({seconds} s each)")
