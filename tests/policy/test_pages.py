"""The pages about policy tools are true: their examples are files, and their commands print what stands below them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from policy.imports.losses import LOSSES
from tests.ca.cli.conftest import Caadmin, caadmin
from tests.docs.reason_codes import ROOT

PAGES = ROOT / "docs" / "policy"
_FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```', re.M | re.S)
_CONSOLE = re.compile(r"^```console\n\$ (.*?)\n(.*?)^```", re.M | re.S)

__all__ = ["caadmin"]


@pytest.mark.parametrize("page", ["explain.md", "testing.md"])
def test_examples_print_what_the_page_says(page: str, caadmin: Caadmin) -> None:
    text = (PAGES / page).read_text()
    for name, content in _FILE.findall(text):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    examples = _CONSOLE.findall(text)
    assert examples
    for command, output in examples:
        ran = caadmin(*shlex.split(command)[1:])
        assert (ran.out, ran.err) == (output, ""), command


def test_the_table_of_losses_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z]\d\d) \| (.*) \|$", (PAGES / "imports.md").read_text(), re.M)
    assert dict(rows) == LOSSES
