"""From Istio policies to an explained refusal: the page is typed line by line beside a running `burgee up`."""

from __future__ import annotations

import pytest

from tests.docs.reason_codes import ROOT
from tests.docs.tour import File, Step, require_parts, running, tour, walk

PAGE = (ROOT / "docs/policy/tutorial.md").read_text()


@pytest.mark.slow
@pytest.mark.real("envoy")
def test_every_line_of_the_tutorial_does_what_the_page_says() -> None:
    require_parts()
    with running() as directory:
        before = {path.name for path in directory.iterdir()}
        walk(tour(PAGE), directory)
        assert {path.name for path in directory.iterdir()} == before


def test_the_tutorial_is_there() -> None:
    """What reads the page finds its files and commands."""
    steps = tour(PAGE)
    assert {step.name for step in steps if isinstance(step, File)} == {"policies/orders.yaml", "policies/drafts.yaml"}
    commands = " ".join(step.command for step in steps if isinstance(step, Step))
    for word in ("plan", "apply", "rollout --wait", "explain --decision", "suggest", "replay", "graph", "rollback"):
        assert f"caadmin policy {word}" in commands
