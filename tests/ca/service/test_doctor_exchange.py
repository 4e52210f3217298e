"""What doctor says of entries for tokens that are exchanged without an agent."""

from __future__ import annotations

from ca.identity.entry import RegistrationEntry
from ca.identity.exchange import parent_id
from ca.ports import Finding, FindingLevel
from ca.service.doctor_entries import entries
from tests.support.stores import NOW, TD, entry

FORGE = parent_id(TD, "oidc", "forge")
SUB = "oidc:sub:repo:acme/shop"


def findings(*given: RegistrationEntry) -> list[Finding]:
    return entries(
        given,
        agents={},
        trust_domain=TD,
        types={"unix"},
        node_types={"oidc"},
        now=NOW,
        token_issuers={"forge": {}},
    )


def test_they_are_no_orphans_where_their_issuer_is_configured() -> None:
    (found,) = findings(entry("/ci", SUB, id="1", parent_id=FORGE))
    assert found.level is FindingLevel.OK


def test_an_issuer_that_is_not_configured_is_told() -> None:
    (found,) = findings(entry("/ci", SUB, id="1", parent_id=parent_id(TD, "oidc", "forgery")))
    assert (found.what, found.level) == ("entries without a parent", FindingLevel.WARNING)
    assert "no issuer of that name is configured" in found.hint


def test_entries_for_everybody_are_told() -> None:
    (found,) = findings(
        entry("/ci", "oidc:issuer:forge", id="1", parent_id=FORGE), entry("/good", SUB, id="2", parent_id=FORGE)
    )
    assert found.what == "entries for everybody at an issuer"
    assert "spiffe://example.org/ci" in found.detail
    assert "/good" not in found.detail


def test_what_no_token_proves_matches_nothing() -> None:
    (found,) = findings(entry("/ci", SUB, "unix:uid:1", id="1", parent_id=FORGE))
    assert found.what == "entries that nothing matches"
