"""What is wrong right now, by named checks: ready means that a workload could get an SVID now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: a stable reason code, a sentence, and what to do about it."""

    reason: str
    detail: str
    hint: str = ""


Check = Callable[[], Problem | None]
"""Looks at memory only (it runs on the event loop) and returns what is wrong, or None."""


class Health:
    """Named checks of one process. Readiness can come and go; a failed liveness check asks for a restart."""

    def __init__(self) -> None:
        self._ready: dict[str, Check] = {}
        self._live: dict[str, Check] = {}
        self._warnings: dict[str, Check] = {}

    def add(self, name: str, check: Check, *, live: bool = False) -> None:
        """Add or replace the check `name`; with `live` it counts for liveness as well as for readiness."""
        (self._live if live else self._ready)[name] = check

    def warn(self, name: str, check: Check) -> None:
        """Add or replace a check whose complaints are shown and change nothing: all works now, and may not for long."""
        self._warnings[name] = check

    def remove(self, name: str) -> None:
        """Forget the check `name`, if it exists."""
        for checks in (self._ready, self._live, self._warnings):
            checks.pop(name, None)

    def problems(self, *, live_only: bool = False) -> dict[str, Problem]:
        """Problems by the name of the check, in the order in which checks were added; empty means healthy.

        A check that raises counts as a problem, so that a broken check never looks like health.
        """
        return _complaints(self._live if live_only else {**self._live, **self._ready})

    def warnings(self) -> dict[str, Problem]:
        """What the checks that only warn complain of."""
        return _complaints(self._warnings)

    @property
    def ready(self) -> bool:
        """True when no check complains."""
        return not self.problems()

    def report(self, *, live_only: bool = False) -> tuple[bool, dict[str, object]]:
        """(healthy, body for a health endpoint): `{"status": "ok" | "failed", "problems": [{check, reason, …}]}`, with
        `warnings` of the same form where there are any."""
        found = self.problems(live_only=live_only)
        body: dict[str, object] = {"status": "failed" if found else "ok", "problems": _listed(found)}
        warnings = {} if live_only else self.warnings()
        if warnings:
            body["warnings"] = _listed(warnings)
        return not found, body


def _complaints(checks: dict[str, Check]) -> dict[str, Problem]:
    found = {}
    for name, check in checks.items():
        try:
            problem = check()
        except Exception as error:
            problem = Problem(reason="CHECK_FAILED", detail=f"check failed: {type(error).__name__}")
        if problem is not None:
            found[name] = problem
    return found


def _listed(found: dict[str, Problem]) -> list[dict[str, object]]:
    return [{"check": name, **asdict(problem)} for name, problem in found.items()]
