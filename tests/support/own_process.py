"""Tests that load foreign code into their process run in a process of their own, one for all of them.

A PKCS#11 module shares libcrypto with Python's TLS, and may bring down whoever it is in: that is then told as the
failure of its tests, and no others are lost with them. The child is a pytest of these tests that sends its reports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import pytest

PARTS = {"SoftHSM"}
"""Tests marked `real` with one of these."""

_ORDER = "BURGEE_TEST_CHILD"
_child = pytest.StashKey["Child"]()


def here() -> bool:
    """Whether this process, or the one that started it, is the one for foreign code."""
    return _ORDER in os.environ


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Inside(config, json.loads(os.environ[_ORDER])) if here() else _Outside())


class _Outside:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in filter(_is_theirs, items):
            item.add_marker(pytest.mark.xdist_group("own-process"), append=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not _is_theirs(item):
            return None
        item.session._setupstate.teardown_exact(nextitem)
        if _child not in item.config.stash:
            item.config.stash[_child] = Child(item.config, item.session.items)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in item.config.stash[_child].reports(item):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            report.nodeid = item.nodeid
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        loaded = getattr(sys.modules.get("ca.keys.pkcs11_module"), "_loaded", None)
        assert not loaded, f"{loaded} belongs in a process of its own: mark the test that loads it `real`"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (child := session.config.stash.get(_child, None)) is not None:
            child.close()


class Child:
    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        mine, its = os.pipe()
        theirs = [item for item in items if _is_theirs(item)]
        order = {"fd": its, "tests": [_name(item) for item in theirs]}
        options = [
            f"--rootdir={config.rootpath}",
            "-q",
            "-p",
            __name__,
            "-p",
            "no:cacheprovider",
            "-c",
            str(config.inipath),
        ]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *sorted({str(item.path) for item in theirs})],
            cwd=config.rootpath,
            env=os.environ | {_ORDER: json.dumps(order)},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=[its],
        )
        os.close(its)
        self._lines = os.fdopen(mine)
        self._sent: dict[str, list[dict[str, Any]]] = {}
        self._ended: set[str] = set()

    def reports(self, item: pytest.Item) -> list[dict[str, Any]]:
        """Of one test, as they were sent; a failure of ours where the process did not come so far."""
        name = _name(item)
        try:
            while name not in self._ended:
                test, data = json.loads(next(self._lines))
                if data is None:
                    self._ended.add(test)
                else:
                    self._sent.setdefault(test, []).append(data)
        except StopIteration:
            return [*self._sent.pop(name, []), self._lost(item, "no report")]
        except pytest.fail.Exception as error:  # out of time
            self._process.kill()
            return [*self._sent.pop(name, []), self._lost(item, str(error))]
        return self._sent.pop(name)

    def _lost(self, item: pytest.Item, why: str) -> dict[str, Any]:
        code = self._process.wait(60)
        self._output.seek(0)
        said = self._output.read().decode(errors="replace")[-8000:]
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"{why}: the process of foreign code ended with status {code}\n{said}",
            when="call",
        )
        return dict(item.config.hook.pytest_report_to_serializable(config=item.config, report=report))

    def close(self) -> None:
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lines.close()
        self._output.close()


class _Inside:
    def __init__(self, config: pytest.Config, order: dict[str, Any]) -> None:
        self._config = config
        self._tests = set(order["tests"])
        self._to = os.fdopen(order["fd"], "w")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._tests]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._send(report.nodeid, self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._send(nodeid, None)

    def _send(self, test: str, data: dict[str, Any] | None) -> None:
        self._to.write(json.dumps([test, data], default=str) + "\n")
        self._to.flush()


def _is_theirs(item: pytest.Item) -> bool:
    return any(PARTS & set(mark.args) for mark in item.iter_markers("real"))


def _name(item: pytest.Item) -> str:
    """Without what xdist adds."""
    return item.nodeid.removesuffix("@own-process")
