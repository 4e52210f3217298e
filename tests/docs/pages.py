"""What the documentation shows as code: spans, blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.docs.reason_codes import ROOT

GENERATED = {"cli.md", "server-config.md", "agent-config.md"}
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    path for path in (ROOT / "docs").rglob("*.md") if path.name not in GENERATED
)
_BLOCK = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.M | re.S)
_SPAN = re.compile(r"`([^`]+)`")
_PROGRAMS = ("burgee", "caadmin", "make")


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page, or those of one language."""
    return [text for kind, text in _BLOCK.findall(page.read_text()) if language in ("", kind)]


def spans(page: Path) -> set[str]:
    """What stands in backticks outside of blocks; line breaks inside are spaces."""
    outside = _BLOCK.sub("", page.read_text())
    return {" ".join(span.split()) for span in _SPAN.findall(outside)}


def commands(page: Path) -> Iterator[list[str]]:
    """Every call of a program of ours, as words: in spans, and in blocks of shell."""
    for span in spans(page):
        yield from _calls(span)
    for language in ("sh", "console"):
        for block in blocks(page, language):
            for line in block.replace("\\\n", " ").splitlines():
                yield from _calls(line.removeprefix("$ "))


def _calls(line: str) -> Iterator[list[str]]:
    for part in re.split(r"\||;|&&|\$\(", line.partition("#")[0]):
        try:
            words = shlex.split(part.strip().rstrip(")"))
        except ValueError:
            continue
        if words and words[0].removeprefix("/opt/burgee/bin/") in _PROGRAMS:
            yield [words[0].removeprefix("/opt/burgee/bin/"), *words[1:]]
