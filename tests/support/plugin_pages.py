"""Configuration tables in the pages of plugins, made from the plugins' models.

A page says where: between `<!-- table: attestor.node.join_token AgentConfig -->` and `<!-- /table -->`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from ca.runtime.config_reference import markdown_table

_TABLE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with each of its tables as its model makes it now."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{_table(found[2], found[3])}\n{found[4]}", page)


def write_pages(root: Path, target: Path) -> None:
    """Every page of `root/docs/plugins` that has tables, into the same place below `target`."""
    for page in sorted((root / "docs/plugins").glob("*.md")):
        text = page.read_text()
        if _TABLE.search(text):
            made = target / page.relative_to(root)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(with_tables(text))


def _table(module: str, model: str) -> str:
    return markdown_table(getattr(importlib.import_module(module), model))
