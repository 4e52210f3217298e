"""A process that dies at any step of saving leaves the old state or the new, and nothing in the way of the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ca.runtime import files
from sds.sealing import SealedStore
from tests.sds.test_sealing import store

OLD, NEW = b"old", b"new" * 50_000
STEPS = ["open", "fdopen", "fchmod", "fsync", "replace"]


def killed_at(step: str, *, after: bool, save: Callable[[], None]) -> None:
    """Another process that is killed right before, or after, the first call of `os.<step>` made while it saves."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return
    real = getattr(files.os, step)

    def deadly(*arguments: Any, **options: Any) -> Any:
        if after:
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        setattr(files.os, step, deadly)
        save()
    finally:
        os._exit(1)


def leftovers(made: SealedStore) -> list[Path]:
    return [path for path in made.directory.iterdir() if path.suffix != ".sealed"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_old_or_new_and_never_half(tmp_path: Path, step: str, after: bool) -> None:
    made = store(tmp_path / "s")
    made.save("agent", OLD)
    killed_at(step, after=after, save=lambda: made.save("agent", NEW))
    survivor = store(tmp_path / "s")
    assert survivor.load("agent") == (NEW if (step, after) == ("replace", True) else OLD)
    survivor.sweep()
    assert leftovers(survivor) == []
    survivor.save("agent", NEW)
    assert survivor.load("agent") == NEW


def test_half_written_files_go_with_a_ban_too(tmp_path: Path) -> None:
    made = store(tmp_path / "s")
    killed_at("replace", after=False, save=lambda: made.save("agent", NEW))
    assert len(leftovers(made)) == 1
    made.erase()
    assert list(made.directory.iterdir()) == []


def test_a_directory_that_cannot_be_swept_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path / "s")
    made.save("agent", OLD)
    killed_at("replace", after=False, save=lambda: made.save("agent", NEW))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    made.sweep()
    assert made.load("agent") == OLD
