"""`make clean` removes what git ignores, and nothing that the documentation has you write lies anywhere else."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.pages import commands
from tests.docs.reason_codes import ROOT

TOUR = [ROOT / "README.md", ROOT / "docs/getting-started.md"]


def ignored() -> list[str]:
    return (ROOT / ".gitignore").read_text().split()


def test_what_git_ignores_is_removed(tmp_path: Path) -> None:
    """Typed in a copy of the Makefile's directory: one thing for each line of `.gitignore`, and one to be kept."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for pattern in ignored():
        made = tmp_path / pattern.rstrip("/").replace("*", "some")
        made.mkdir()
        (made / "file").touch()
    (tmp_path / "kept").touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "kept"}


@pytest.mark.parametrize("page", TOUR, ids=lambda page: page.name)
def test_a_newcomer_leaves_no_key_in_the_checkout(page: Path) -> None:
    """What is written lies below `.burgee`, which git ignores, or outside of the checkout."""
    targets = [
        value
        for words in commands(page)
        for option, value in pairwise(words)
        if option in ("--write", "--dir", "--file")
    ]
    assert targets
    assert ".burgee/" in ignored()
    assert not [target for target in targets if not target.startswith((".burgee/", "/", "~/"))]
