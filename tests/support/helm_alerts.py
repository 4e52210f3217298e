"""The alert rules that the chart carries: those of the page about them, and no others.

python -m tests.support.helm_alerts
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs/alerts.md"
HEAD = "# The rules of docs/alerts.md. Made by `make proto`; change that.\n"


def rules_text() -> str:
    """The page's file of rules, without its comments."""
    block = PAGE.read_text().partition("```yaml\n")[2].partition("```")[0]
    return HEAD + yaml.safe_dump(yaml.safe_load(block), sort_keys=False, width=1000)


if __name__ == "__main__":
    sys.stdout.write(rules_text())
