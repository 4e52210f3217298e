"""Reads Python files of ours."""

from __future__ import annotations

import ast
import gc
from pathlib import Path


def parse(file: Path) -> ast.Module:
    """Its syntax tree. Without the garbage collector meanwhile: a forgotten task of another test that it finds logs its
    traceback, which parses too, and CPython 3.11 then fails the outer parse (`AST constructor recursion depth`)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(file.read_bytes())
    finally:
        if collecting:
            gc.enable()
