"""What every test shares: the table of what was not exercised, and the rule that CI may skip nothing."""

from __future__ import annotations

import gc
import importlib
import os
import re
import signal
from typing import Any

import pytest
from _pytest.nodeid import NodeId

from ca.runtime import log

pytest_plugins = ["tests.support.faults", "tests.support.own_process"]

# CPython 3.11 fails a parse of source code in which the collector begins another (of a line of a traceback, by what it
# collects). Reading the tests, pytest parses all of them.
gc.disable()
importlib.import_module("hypothesis")  # its plugin would do so for the summary, when the collector runs again

# Who was started in the background may ignore Ctrl-C, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_REAL = os.environ.get("BURGEE_REQUIRE_REAL") == "1"


class _ByFile:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Tests of a file that starts something for all of them share a worker: it is started once, and they find what
        those before them left, in the same order always."""
        for item in items:
            if item.get_closest_marker("xdist_group") is None and _shares(item):
                item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _shares(item: pytest.Item) -> bool:
    info: Any = getattr(item, "_fixtureinfo", None)
    return info is not None and any(one.scope == "module" for found in info.name2fixturedefs.values() for one in found)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_ByFile())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """xdist names the group of a test, whose tests share one worker and what it starts, in an attribute that pytest 9.2
    reads no more."""
    for item in items:
        grouped = getattr(item, "_nodeid", "")
        if grouped and grouped != item.nodeid:
            item._id = NodeId.parse(grouped)


def pytest_collection_finish() -> None:
    """Everything is parsed; and what was made for it lives as long as the process."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test begins with the log as it is by default: some set it for the whole process, as programs do."""
    log.configure()


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which real parts were missing, how many tests that cost, and the command that would exercise them."""
    _tell_counts(terminalreporter)
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    rows: dict[str, int] = {}
    for report in skipped:
        rows[_reason(report)] = rows.get(_reason(report), 0) + 1
    terminalreporter.section("not exercised on this machine")
    for reason, count in sorted(rows.items()):
        part, _, how = re.sub(r"^needs ", "", reason).partition(": ")
        terminalreporter.write_line(f"{count:4d} test(s)  {part}")
        if how:
            terminalreporter.write_line(f"             to run them: {how}")


def _tell_counts(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests counted (their property `counted`), which a worker's output would not show."""
    reports = [r for some in ("passed", "failed") for r in terminalreporter.stats.get(some, [])]
    told = {text: None for r in reports for name, text in r.user_properties if name == "counted"}
    if told:
        terminalreporter.section("counted")
        for text in told:
            terminalreporter.write_line(str(text))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With BURGEE_REQUIRE_REAL=1 a skipped test is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if REQUIRE_REAL and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
