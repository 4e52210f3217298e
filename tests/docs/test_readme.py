"""The README's tour, typed line by line into one shell beside a running `burgee up`."""

from __future__ import annotations

import re

import pytest

from tests.bench.figures import FIGURES
from tests.docs.reason_codes import ROOT
from tests.docs.tour import Step, require_parts, running, tour, walk

README = (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.real("envoy")
def test_every_line_of_the_tour_does_what_the_readme_says() -> None:
    """Exit codes too: a step fails exactly where the README shows an error."""
    require_parts()
    with running() as directory:
        walk(tour(README), directory)


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
