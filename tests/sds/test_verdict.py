"""One verdict for each fault, and the entries that came near: values in, values out."""

from __future__ import annotations

from datetime import timedelta

import pytest

from attestor.workload.run import Outcome
from ca.errors import Denied, Exhausted, Unauthenticated, Unavailable
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from sds.condition import Problem
from sds.explain import Near, nearest, no_identity
from sds.gone import Gone, GoneEntries
from sds.verdict import Given, Seen, Verdict, verdict, verdict_on_refusal, why_missing
from tests.sds.lab import TD, entry
from tests.support.clock import FakeClock

NOW = FakeClock().now()
UID, USER = Selector("unix", "uid:1000"), Selector("unix", "user:web")
NS, SA = Selector("k8s", "ns:default"), Selector("k8s", "sa:api")
AGENT = SpiffeId(TD, "/spire/agent/join_token/t")
REFUSED = Unavailable("kubelet 127.0.0.1:10250 connection refused", reason="KUBELET_UNREACHABLE", hint="start it")
LOST = Problem(reason="SERVER_UNREACHABLE", detail="nobody answers", hint="start it", since=NOW, last_seen=NOW)
ME = frozenset({UID, USER})


def seen(*entries: RegistrationEntry, gone: tuple[Gone, ...] = (), error: Unavailable | None = None, **other: object):
    outcomes = [Outcome(attestor="unix", selectors=ME)]
    if error is not None:
        outcomes.append(Outcome(attestor="k8s", error=error))
    silent = {"k8s"} if error is not None else set()
    given = {
        "selectors": ME,
        "outcomes": outcomes,
        "near": nearest(entries, ME, gone=gone, silent=silent, now=NOW),
        "configured": frozenset({one.attestor for one in outcomes}),
        "agent_id": AGENT,
    }
    return Seen(**{**given, **other})  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Seen, str, str]] = {
    "no entry": (seen(entry("a", "", Selector("unix", "uid:7"))), "NO_IDENTITY", "NO_ENTRY"),
    "it lacks a selector": (seen(entry("a", "", UID, Selector("unix", "gid:7"))), "NO_IDENTITY", "SELECTORS_MISSING"),
    "an attestor failed": (seen(entry("a", "", UID, NS, SA), error=REFUSED), "NO_IDENTITY", "ATTESTOR_FAILED"),
    "none of its selectors could be looked for": (
        seen(entry("a", "", NS), error=REFUSED),
        "NO_IDENTITY",
        "ATTESTOR_FAILED",
    ),
    "no such attestor": (seen(entry("a", "", UID, NS)), "NO_IDENTITY", "ATTESTOR_NOT_CONFIGURED"),
    "expired": (seen(entry("a", "", UID, expires_at=NOW)), "NO_IDENTITY", "ENTRY_EXPIRED"),
    "expired and taken away": (
        seen(gone=(Gone(entry=entry("a", "", UID, expires_at=NOW), since=NOW + timedelta(seconds=1)),)),
        "NO_IDENTITY",
        "ENTRY_EXPIRED",
    ),
    "deleted": (seen(gone=(Gone(entry=entry("a", "", UID), since=NOW),)), "NO_IDENTITY", "ENTRY_REMOVED"),
    "for a store": (seen(entry("a", "", UID, store_svid=True)), "NO_IDENTITY", "ENTRY_STORED"),
    "out of touch": (seen(sync=LOST), "NO_IDENTITY", "AGENT_OUT_OF_TOUCH"),
    "not ready": (
        seen(not_ready=Unavailable("no identity", reason="AGENT_NOT_READY"), problem=LOST),
        "AGENT_NOT_READY",
        "SERVER_UNREACHABLE",
    ),
    "starting": (seen(not_ready=Unavailable("wait", reason="AGENT_STARTING")), "AGENT_STARTING", "AGENT_STARTING"),
    "no SVID yet": (seen(given=[Given(entry=entry("a"), not_after=None)]), "SVID_PENDING", "SVID_PENDING"),
    "refused by the server": (
        seen(given=[Given(entry=entry("a"), not_after=None, reason="ENTRY_NOT_AUTHORIZED")]),
        "SVID_PENDING",
        "ENTRY_NOT_AUTHORIZED",
    ),
    "all attestors failed": (
        Seen(
            outcomes=[Outcome(attestor="k8s", error=REFUSED)],
            error=Unavailable("workload attestation failed", reason="ATTESTATION_FAILED"),
        ),
        "ATTESTATION_FAILED",
        "ATTESTOR_FAILED",
    ),
    "it changed": (
        Seen(error=Unauthenticated("another user", reason="CALLER_CHANGED")),
        "CALLER_CHANGED",
        "CALLER_CHANGED",
    ),
    "it hangs": (Seen(error=Exhausted("stuck", reason="ATTESTATION_STUCK")), "ATTESTATION_STUCK", "ATTESTATION_STUCK"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_reason(fault: str) -> None:
    what, told, reason = FAULTS[fault]
    found = verdict(what)
    assert (found.identity, found.told, found.reason) == (False, told, reason)
    assert found.detail


def test_different_faults_have_different_reasons() -> None:
    """Of the seventeen, those that share a reason are the same fault seen twice."""
    assert len({reason for _, _, reason in FAULTS.values()}) >= len(FAULTS) - 4


def test_whoever_gets_an_identity_is_told_nothing_else() -> None:
    found = verdict(seen(entry("b", "", NS), error=REFUSED, given=[Given(entry=entry("a"), not_after=NOW)]))
    assert found == Verdict(identity=True, told="OK", reason="OK", detail="it gets an identity")
    some = verdict(seen(given=[Given(entry=entry("a"), not_after=NOW), Given(entry=entry("b"), not_after=None)]))
    assert (some.identity, some.detail) == (True, "it gets 1 of 2 identities; 1 more have no SVID yet")


def test_the_next_step_can_be_typed() -> None:
    named = verdict(seen()).command
    assert named == (
        f"caadmin entry create --parent-id {AGENT} --spiffe-id spiffe://example.org/NAME --selector unix:uid:1000"
    )
    odd = verdict(seen(selectors=frozenset({Selector("unix", "path:/a b'c")}))).command
    assert odd.endswith("--selector 'unix:path:/a b'\\''c'")
    assert "entry update a --expires-at 0" in verdict(FAULTS["expired"][0]).command
    assert "audit --item a" in verdict(FAULTS["deleted"][0]).command
    failed = verdict(FAULTS["an attestor failed"][0])
    assert (failed.command, failed.hint) == ("caadmin doctor agent", "start it")
    assert "KUBELET_UNREACHABLE" in failed.detail


def test_of_one_that_went_and_one_that_was_made_since_the_new_one_is_looked_at() -> None:
    lost = (Gone(entry=entry("a", "", UID), since=NOW + timedelta(milliseconds=500)),)
    new = entry("b", "", UID, Selector("unix", "gid:7"), created_at=NOW)
    old = entry("b", "", UID, Selector("unix", "gid:7"), created_at=NOW - timedelta(seconds=1))
    assert verdict(seen(new, gone=lost)).reason == "SELECTORS_MISSING"
    assert verdict(seen(old, gone=lost)).reason == "ENTRY_REMOVED"


def test_what_is_missing_says_why() -> None:
    what = FAULTS["an attestor failed"][0]
    assert why_missing(NS, what) == "ATTESTOR_FAILED"
    assert why_missing(Selector("unix", "gid:7"), what) == ""
    assert why_missing(Selector("docker", "label:a"), what) == "ATTESTOR_NOT_CONFIGURED"


class TestPastRefusals:
    def test_the_same_fault_has_the_same_reason(self) -> None:
        found = verdict_on_refusal(FAULTS["it lacks a selector"][0], no_identity(), pid=42)
        assert (found.told, found.reason) == ("NO_IDENTITY", "SELECTORS_MISSING")

    def test_one_that_is_mended_says_so(self) -> None:
        found = verdict_on_refusal(seen(given=[Given(entry=entry("a"), not_after=None)]), no_identity(), pid=42)
        assert (found.identity, found.told, found.reason) == (False, "NO_IDENTITY", "MENDED_SINCE")
        assert "ask again" in found.hint
        assert found.command == "caadmin explain workload --pid 42"

    def test_any_other_is_its_own_reason(self) -> None:
        found = verdict_on_refusal(seen(), Denied("the server banned this agent", reason="AGENT_BANNED"), pid=42)
        assert (found.told, found.reason) == ("AGENT_BANNED", "AGENT_BANNED")


class TestNearest:
    def test_whoever_lacks_least_comes_first(self) -> None:
        far, near = entry("a", "", UID, NS, SA), entry("b", "", UID, NS)
        found = nearest([far, near], ME)
        assert [one.entry.id for one in found] == ["b", "a"]
        assert (found[0].matches, found[0].misses) == ((UID,), (NS,))

    def test_what_could_not_be_looked_for_counts_less_than_what_is_known_to_lack(self) -> None:
        wanted = entry("z", "", UID, NS, SA)
        other = entry("a", "", UID, Selector("unix", "gid:7"))
        assert [one.entry.id for one in nearest([wanted, other], ME)] == ["a", "z"]
        assert [one.entry.id for one in nearest([wanted, other], ME, silent={"k8s"})] == ["z", "a"]

    def test_an_entry_that_shares_nothing_is_not_near_nor_is_one_that_gives_an_identity(self) -> None:
        assert nearest([entry("a", "", NS), entry("b", "", UID)], ME) == []

    def test_no_more_than_was_asked_for(self) -> None:
        many = [entry(f"e{number}", "", UID, Selector("unix", f"gid:{number}")) for number in range(100)]
        assert len(nearest(many, ME)) == 3
        assert len(nearest(many, ME, limit=7)) == 7

    def test_of_what_is_gone_only_what_would_have_fitted(self) -> None:
        lost = (Gone(entry=entry("a", "", UID), since=NOW), Gone(entry=entry("b", "", NS), since=NOW))
        assert nearest([], ME, gone=lost) == [
            Near(entry=lost[0].entry, matches=(UID,), misses=(), reason="ENTRY_REMOVED", since=NOW)
        ]
        back = entry("a", "", UID, Selector("unix", "gid:7"))
        assert [one.reason for one in nearest([back], ME, gone=lost)] == [""], "it came back as another"


def test_entries_that_are_gone_are_kept_within_bounds() -> None:
    kept = GoneEntries()
    for number in range(1000):
        kept.put(entry(f"e{number}", "", UID), NOW)
    assert len(list(kept)) <= 128
    assert next(iter(kept)).entry.id == "e999"
    huge = entry("huge", "", *(Selector("unix", f"path:/{'x' * 1000}{number}") for number in range(200)))
    kept.put(huge, NOW)
    assert huge not in [one.entry for one in kept]
    kept.clear()
    assert not list(kept)
