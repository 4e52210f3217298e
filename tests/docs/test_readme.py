"""The README's tour, typed line by line into one shell beside a running `burgee up`."""

from __future__ import annotations

import re

import pytest

from tests.bench.figures import FIGURES
from tests.docs.reason_codes import ROOT
from tests.docs.tour import Step, assert_in_order, require_parts, running, tour, walk

README = (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.real("envoy")
def test_every_line_of_the_tour_does_what_the_readme_says() -> None:
    """Exit codes too: a step fails exactly where the README shows an error."""
    require_parts()
    with running() as directory:
        walk(tour(README), directory)
        assert_printed((directory / "up.log").read_text())


def assert_printed(said: str) -> None:
    """What the pages show of `make up`; of numbers that differ from run to run, that there is one."""
    for page in (README, (ROOT / "docs/getting-started.md").read_text()):
        (block,) = [one for one in re.findall(r"^```text\n(.*?)^```", page, re.M | re.S) if "proof " in one]
        lines = [line for line in block.splitlines() if line.strip() not in ("", "…")]
        assert len(lines) >= 10
        shown = [re.sub(r"(?<=:)64\d{3}|8081|58(?= s of)", "…", line) for line in lines]
        assert_in_order(tuple(shown), said.splitlines(), said)


def test_the_tour_is_there() -> None:
    """What reads the README finds it: the other test could otherwise pass on nothing."""
    commands = [step.command for step in tour(README) if isinstance(step, Step)]
    assert len(commands) >= 10
    assert {"caadmin health", "caadmin entry delete me", "caadmin policy explain --decision $ID"} <= set(commands)


def test_figures_of_spire_are_those_of_the_benchmark() -> None:
    """Row by row: what was measured has the benchmark's own words, and SPIRE's column its number and unit."""
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) (\S+) \| ([\d.]+) (\S+) \|$", README, re.M)
    known = {figure.what: figure for figure in FIGURES}
    assert len(rows) >= 8
    for what, spire, unit, _, own_unit in rows:
        assert (float(spire), unit, own_unit) == (known[what].spire, known[what].unit, known[what].unit), what
