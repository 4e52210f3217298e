"""The memory of what changed for whom: exact while it reaches back, bounded, and honest about its edge."""

from __future__ import annotations

from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.service import feed_missed
from ca.service.feed_missed import Missed, Resume
from ca.service.follower import Applied

TD = TrustDomain("example.org")
ONE, TWO = (SpiffeId(TD, f"/spire/agent/x/{n}") for n in ("one", "two"))


def test_an_agent_gets_its_own_changes_after_its_token() -> None:
    missed = Missed(10)
    missed.add(Applied(revision=11, entries={"a": frozenset({ONE}), "b": frozenset({TWO})}))
    missed.add(Applied(revision=15, entries={"c": frozenset({ONE, TWO})}, bundles={TD}))
    assert missed.of(ONE, 10) == Resume(entries={"a", "c"}, bundles={TD})
    assert missed.of(ONE, 11) == Resume(entries={"c"}, bundles={TD})
    assert missed.of(TWO, 15) == Resume()


def test_a_change_of_the_whole_set_needs_a_snapshot() -> None:
    missed = Missed(10)
    missed.add(Applied(revision=11, whole={ONE}))
    assert missed.of(ONE, 10) is None
    assert missed.of(ONE, 11) == Resume()
    assert missed.of(TWO, 10) == Resume()


def test_memory_is_bounded_and_its_edge_moves() -> None:
    missed = Missed(0)
    for revision in range(1, feed_missed.MEMORY):
        missed.add(Applied(revision=revision, entries={str(revision): frozenset({ONE})}))
    assert 0 < missed.since < feed_missed.MEMORY
    resume = missed.of(ONE, missed.since)
    assert resume is not None
    assert len(resume.entries) == feed_missed.MEMORY - 1 - missed.since
