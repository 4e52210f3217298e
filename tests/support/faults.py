"""What a test process leaves behind when it hangs or dies: under xdist its output leads nowhere.

A test out of time is interrupted and fails as others do. Where that does not help (it is in foreign code, say) the
process ends half a minute later; then, and whenever it crashes, where each thread was is in a file that the closing
summary shows. A worker that died ends the run, for xdist would start another and wait for ever: `--max-worker-restart`.
"""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("BURGEE_CACHE", Path(__file__).parents[2] / ".cache")) / "faults"
GRACE_SECONDS = 30.0


def file_of(run: str, worker: str) -> Path:
    return FOLDER / f"{run}-{worker}.txt"


class Faults:
    """In the process that runs tests. Without a file it is told on standard error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seconds = 0.0
        if path is None:
            self._fd = os.dup(2)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        faulthandler.enable(self._fd)

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, settings: Any) -> None:
        self._seconds = settings.timeout + GRACE_SECONDS
        self._end_after(self._seconds)

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_cancel_timer(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(trylast=True)
    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector) -> None:
        """All timers are cancelled here, for a debugger's sake, and a test that failed has still to be taken down."""
        if self._seconds and isinstance(node, pytest.Item):
            self._end_after(self._seconds)

    def _end_after(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._fd)

    def pytest_unconfigure(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        os.close(self._fd)
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Deaths:
    """In the process that hands out tests."""

    def __init__(self) -> None:
        self._told: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        if error is None:
            return
        path = file_of(node.workerinput["testrunuid"], node.workerinput["workerid"])
        left = path.read_text(errors="replace") if path.exists() else ""
        path.unlink(missing_ok=True)
        self._told.append(f"{node.gateway.id}: {error}, {_ended(node)}\n{left or 'it left no trace'}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for text in self._told:
            terminalreporter.section("a worker died")
            terminalreporter.write_line(text)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._told and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _ended(node: Any) -> str:
    """By which signal, as execnet knows; SIGKILL is the kernel's way out when memory is short."""
    with suppress(Exception):
        code = node.gateway._io.popen.wait(timeout=5)
        return f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
    return "how is not known"


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", None)
    if given is not None:
        config.pluginmanager.register(Faults(file_of(given["testrunuid"], given["workerid"])))
        return
    config.pluginmanager.register(Deaths())
    config.pluginmanager.register(Faults(None))
