"""The engine decides by what it is given: it opens nothing, waits for nothing, and asks no clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "policy"
OUTSIDE = frozenset(
    {
        *(
            "asyncio",
            "concurrent",
            "glob",
            "grpc",
            "http",
            "httpx",
            "io",
            "logging",
            "multiprocessing",
            "os",
            "pathlib",
        ),
        *("random", "secrets", "select", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile"),
        *("threading", "time", "urllib.request"),
    }
)
CLOCKS = frozenset({"now", "utcnow", "today", "monotonic", "perf_counter", "time_ns"})
OWN_FILES = {"graph_page.py": "importlib.resources"}
"""The page's script and style are part of the program."""


def names_of(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def reached(text: str, name: str = "") -> list[str]:
    """What of the world outside a module looks at."""
    found = []
    for node in ast.walk(ast.parse(text)):
        for module in names_of(node):
            if {module, module.partition(".")[0]} & OUTSIDE or module.startswith("importlib"):
                found += [module] if OWN_FILES.get(name) != module else []
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in ("open", "input", "print", "__import__", "exec", "eval"):
                found.append(called.id)
            elif isinstance(called, ast.Attribute) and called.attr in CLOCKS:
                found.append(called.attr)
    return found


@pytest.mark.parametrize("path", sorted(ROOM.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOM)))
def test_a_module_reaches_nothing_outside(path: Path) -> None:
    assert reached(path.read_text(), path.name) == []


@pytest.mark.parametrize(
    "text", ["import os", "from time import time", "from urllib.request import urlopen", "open('x')", "datetime.now()"]
)
def test_what_reaches_outside_is_seen(text: str) -> None:
    assert reached(text)
