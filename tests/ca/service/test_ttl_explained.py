"""Asked, granted, cut short by what, and what would mend it; and who fails first when something stops."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import NotFound
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import KeyType
from ca.service.issuance import IssueSettings
from ca.service.live_index import Holder, Live
from ca.service.outage import without_authority, without_server
from ca.service.ttl_explained import Asked, asked_for, explain
from ca.store.authorized import AuthorizedIndex

TD = TrustDomain("example.org")
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = 86_400
X509, JWT = AuthorityKind.X509, AuthorityKind.JWT
SETTINGS = IssueSettings(
    trust_domain=TD,
    server="s",
    x509_svid_ttl_seconds=3600,
    jwt_svid_ttl_seconds=300,
    agent_ttl_seconds=1800,
    backdate_seconds=10,
)


def one(kind: AuthorityKind = X509, *, life: int = DAY, **changes: Any) -> Authority:
    values: dict[str, Any] = {
        "kind": kind,
        "authority_id": f"{kind}-1",
        "key_id": "k",
        "key_type": KeyType.EC_P256,
        "status": AuthorityState.ACTIVE,
        "not_before": START,
        "not_after": START + timedelta(seconds=life),
        "server": "s",
    }
    return Authority(**values | changes)


def live(path: str, end: datetime, holder: Holder = Holder.WORKLOAD, **changes: str) -> Live:
    values: dict[str, Any] = {"agent": "", "entry_id": "e", "server": "s", "serial": "1", "authority_id": "x509-1"}
    return Live(holder=holder, spiffe_id=f"spiffe://{TD}{path}", not_before=START, not_after=end, **values | changes)


def explained(asked: Asked, *own: Authority, at: datetime = START, alive: tuple[Live, ...] = ()) -> Any:
    return explain(asked, own=own, ca_ttl_seconds=DAY, backdate_seconds=10, alive=alive, now=at)


def test_what_is_granted_in_full_needs_no_advice() -> None:
    found = explained(Asked(kind=X509, seconds=3600, by="x509_svid_ttl_seconds"), one())
    assert (found.granted_seconds, found.caps, found.cut_from, found.advice) == (3600, (), None, "")


def test_what_will_be_cut_short_is_said_before_it_is() -> None:
    """A sixth of an authority's life is left when the next one signs: whoever asks for more is cut short until then."""
    found = explained(Asked(kind=X509, seconds=6 * 3600, by="entry", entry_id="e"), one())
    assert (found.granted_seconds, found.caps) == (6 * 3600, ())
    assert found.cut_from == START + 18 * HOUR
    assert found.advice.startswith("ca_ttl_seconds of 129600 or more, or 14400 s or less in entry `e`")


def test_what_is_cut_short_names_what_cuts_it() -> None:
    found = explained(Asked(kind=X509, seconds=7200, by="x509_svid_ttl_seconds"), one(), at=START + 23 * HOUR)
    assert found.granted_seconds == 3600
    assert [cap.reason for cap in found.caps] == ["AUTHORITY_EXPIRES"]
    assert found.advice.startswith("nothing need be changed")


def test_an_upstream_that_gives_less_is_named() -> None:
    short = one(life=7200, upstream_authority_id="root")
    found = explained(Asked(kind=X509, seconds=3600, by="x509_svid_ttl_seconds"), short)
    assert found.advice.startswith("its upstream gave the authority 7200 s instead of ca_ttl_seconds of 86400")


def test_more_than_seven_days_never_fits() -> None:
    found = explained(Asked(kind=X509, seconds=8 * DAY, by="entry", entry_id="e"), one())
    assert found.advice.startswith("14400 s or less in entry `e`")


def test_at_its_end_an_authority_grants_nothing() -> None:
    found = explained(Asked(kind=JWT, seconds=300, by="jwt_svid_ttl_seconds"), one(JWT), at=START + 24 * HOUR)
    assert (found.granted_seconds, len(found.caps)) == (0, 1)
    assert explained(Asked(kind=JWT, seconds=300, by="x"), one()).advice == "nothing signs: see the server's log"


def test_what_is_in_use_is_counted_entry_by_entry() -> None:
    alive = (live("/a", START + HOUR), live("/a", START + 2 * HOUR, entry_id="f"), live("/a", START + 3 * HOUR))
    found = explained(Asked(kind=X509, seconds=60, by="entry", entry_id="e"), one(), alive=alive)
    assert (found.alive, found.first_not_after) == (2, START + HOUR)


def test_an_identity_that_nobody_gives() -> None:
    index = AuthorizedIndex(TD, lambda: START)
    nobody = SpiffeId(TD, "/x")
    with pytest.raises(NotFound):
        asked_for(nobody, index=index, settings=SETTINGS, is_agent=False, is_server=False)
    (agent,) = asked_for(nobody, index=index, settings=SETTINGS, is_agent=True, is_server=False)
    assert (agent.seconds, agent.by) == (1800, "agent_ttl_seconds")
    (server,) = asked_for(nobody, index=index, settings=SETTINGS, is_agent=False, is_server=True)
    assert server.seconds == 3600


def test_without_the_server_the_first_to_fail_comes_first() -> None:
    alive = [live(f"/w{n}", START + n * HOUR, agent="spiffe://example.org/n") for n in (3, 1, 2)]
    alive.append(live("/below", START + 24 * HOUR, Holder.DOWNSTREAM))
    losses = without_server(
        alive=alive, agents=[("n1", START + 2 * HOUR), ("n2", START + HOUR / 2)], tokens_end=START + HOUR / 6, now=START
    )
    assert [loss.what for loss in losses] == [
        "new nodes, new entries, new JWT-SVIDs",
        "JWT-SVIDs that agents have in store",
        "agents' own SVIDs",
        "X.509-SVIDs of workloads",
        "authorities of servers below this one",
    ]
    agents, workloads = losses[2], losses[3]
    assert (agents.who, agents.count, agents.at) == ("n2", 2, START + HOUR / 2)
    assert workloads.who == "spiffe://example.org/w1 on spiffe://example.org/n"
    assert (workloads.half_at, workloads.last_at) == (START + 2 * HOUR, START + 3 * HOUR)


def test_without_another_authority_it_lasts_as_long_as_what_is_prepared() -> None:
    own = [
        one(),
        one(authority_id="next", status=AuthorityState.PREPARED, not_after=START + 36 * HOUR),
        one(JWT, not_after=START + 20 * HOUR),
        one(authority_id="old", status=AuthorityState.OLD, not_after=START + 99 * HOUR),
    ]
    losses = without_authority(own, {X509: HOUR, JWT: HOUR / 12})
    assert [(loss.what, loss.at) for loss in losses] == [
        ("new JWT-SVIDs begin to be cut short", START + 20 * HOUR - HOUR / 12),
        ("no more JWT-SVIDs", START + 20 * HOUR),
        ("new X.509-SVIDs begin to be cut short", START + 35 * HOUR),
        ("no more X.509-SVIDs", START + 36 * HOUR),
    ]
    assert losses[-1].who == "next"
