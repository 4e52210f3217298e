"""The page of deviations and the conformance cases tell the same ones, for the same calls and reasons."""

from __future__ import annotations

import re

from tests.conformance import cases
from tests.docs.reason_codes import ROOT

SECTION = "### As the conformance cases have it"
ROW = re.compile(r"^\| (?P<what>.+?) \| (?P<calls>`.+?`) \| (?P<reason>.+?) \|$", re.M)


def asserted() -> dict[str, set[str]]:
    """Reason of each deviation in the cases → the calls that deviate so."""
    found: dict[str, set[str]] = {}
    for name in cases.names():
        play = cases.load(name)
        for case in play.cases:
            if case.deviation is not None:
                found.setdefault(case.deviation, set()).update(play.steps[step]["call"] for step in case.steps)
    return found


def listed() -> dict[str, set[str]]:
    """The same from the page."""
    page = (ROOT / "docs/compatibility.md").read_text()
    section = page.partition(SECTION)[2].partition("\n### ")[0]
    return {row["reason"]: set(re.findall(r"`(.+?)`", row["calls"])) for row in ROW.finditer(section)}


def test_every_deviation_of_the_cases_is_listed_and_no_other() -> None:
    assert listed() == asserted()


def test_there_are_some() -> None:
    """What reads either side finds it: two empty ones would be equal too."""
    assert len(asserted()) >= 15
    assert {"Entry/ListEntries", "Agent/CreateJoinToken"} <= set().union(*listed().values())
