"""The schedule: SPIRE's thresholds, late starts, and years of simulated clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.authority import actions
from ca.authority.actions import Action, Activate, Prepare, Prune, Published, Retire
from ca.authority.journal import Journal
from ca.authority.schedule import (
    CONDEMNED_PATIENCE,
    PRUNE_GRACE,
    activate_at,
    activation,
    due,
    last_safe_second,
    next_due,
    patience,
    prepare_at,
)
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find, signing_authority
from ca.authority.ttls import check_ttls, longest_svid_ttl
from ca.errors import ConfigError, FailedPrecondition
from ca.ports import KeyType

START = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
X509 = AuthorityKind.X509


def authority(
    name: str,
    begin: datetime,
    life: timedelta,
    status: AuthorityState = AuthorityState.ACTIVE,
    *,
    tainted: bool = False,
) -> Authority:
    return Authority(
        kind=X509,
        authority_id=name,
        key_id=name,
        key_type=KeyType.EC_P256,
        status=status,
        not_before=begin,
        not_after=begin + life,
        server="s1",
        tainted=tainted,
    )


def apply(known: tuple[Authority, ...], action: Action, *, now: datetime = START) -> tuple[Authority, ...]:
    return actions.apply(Journal(authorities=known), action, server="s1", now=now).authorities


@dataclass
class Server:
    """The shell around the pure machine, as small as it can be: makes authorities, keeps bundle, issues SVIDs."""

    life: timedelta
    svid_ttl: timedelta
    authorities: tuple[Authority, ...] = ()
    made: int = 0
    history: list[str] = field(default_factory=list)
    svids: list[tuple[str, datetime]] = field(default_factory=list)
    """Authority and end of what was issued."""

    def tick(self, now: datetime) -> None:
        """What a rotation does at one moment: until nothing is due."""
        for _ in range(20):
            actions = due(self.authorities, kind=X509, now=now)
            if not actions:
                return
            for action in actions:
                self._run(action, now)
        raise AssertionError("the schedule never comes to rest")

    def _run(self, action: Prepare | Activate | Prune, now: datetime) -> None:
        self.history.append(f"{type(action).__name__} {(now - START) / HOUR:g}")
        if isinstance(action, Prepare):
            self.made += 1
            new = authority(f"a{self.made}", now, self.life, AuthorityState.PREPARED)
            self.authorities = apply(self.authorities, Published(new), now=now)
            return
        self.authorities = apply(self.authorities, action, now=now)

    def issue(self, now: datetime) -> None:
        signing = signing_authority(self.authorities, X509, now=now)
        assert signing.authority_id in self.bundle, "signed with an authority that is not published"
        self.svids.append((signing.authority_id, min(now + self.svid_ttl, signing.not_after)))

    @property
    def bundle(self) -> set[str]:
        """What is published: every authority that exists."""
        return {one.authority_id for one in self.authorities}

    def check(self, now: datetime) -> None:
        self.svids = [(issuer, end) for issuer, end in self.svids if end > now]
        lost = {issuer for issuer, _ in self.svids} - self.bundle
        assert not lost, f"unexpired SVIDs chain to {lost}, which left the bundle"
        states = [one.status for one in self.authorities]
        assert states.count(AuthorityState.ACTIVE) == 1
        assert states.count(AuthorityState.PREPARED) <= 1


def test_a_day_of_the_defaults_is_spires_timeline() -> None:
    """A new authority every 12 hours, each published 8 hours before it signs."""
    server = Server(life=DAY, svid_ttl=HOUR)
    for minutes in range(0, 49 * 60, 10):
        server.tick(START + timedelta(minutes=minutes))
    assert server.history == [
        "Prepare 0",
        "Activate 0",
        "Prepare 12",
        "Activate 20",
        "Prepare 24",
        "Prune 24.1667",
        "Activate 32",
        "Prepare 36",
        "Prune 36.1667",
        "Activate 44",
        "Prepare 48",
        "Prune 48.1667",
    ]


@pytest.mark.parametrize(
    ("life", "prepare", "activate"),
    [
        (DAY, 12 * HOUR, 20 * HOUR),
        (timedelta(seconds=60), timedelta(seconds=30), timedelta(seconds=50)),
        (365 * DAY, 335 * DAY, 358 * DAY),
    ],
)
def test_thresholds(life: timedelta, prepare: timedelta, activate: timedelta) -> None:
    one = authority("a", START, life)
    assert prepare_at(one) == START + prepare
    assert activate_at(one) == START + activate


def test_the_first_authority_signs_at_once() -> None:
    assert due((), kind=X509, now=START) == (Prepare(X509),)
    prepared = authority("a", START, DAY, AuthorityState.PREPARED)
    assert due((prepared,), kind=X509, now=START) == (Activate("a"),)


def test_one_kind_does_not_see_the_other() -> None:
    assert due((authority("a", START, DAY),), kind=AuthorityKind.JWT, now=START) == (Prepare(AuthorityKind.JWT),)


@pytest.mark.parametrize(
    ("published_hours", "signs_hours"),
    [(12, 20), (19, 20), (19.5, 20.5), (21, 22), (22.5, 23), (23.5, 23)],
)
def test_a_late_successor_is_first_made_known(published_hours: float, signs_hours: float) -> None:
    """An hour of notice, but never into the last hour of the one that signs (SPIFFE Federation §4.1, H1)."""
    active = authority("a", START, DAY)
    late = authority("b", START + published_hours * HOUR, DAY, AuthorityState.PREPARED)
    assert activation(active, late) == START + signs_hours * HOUR


def test_a_successor_that_slept_too_long_is_made_anew() -> None:
    active, stale = authority("a", START, DAY), authority("b", START + 12 * HOUR, DAY, AuthorityState.PREPARED)
    assert due((active, stale), kind=X509, now=START + 25 * HOUR) == (Prepare(X509),)


def test_a_tainted_successor_never_signs() -> None:
    active = authority("a", START, DAY)
    tainted = authority("b", START + 12 * HOUR, DAY, AuthorityState.PREPARED, tainted=True)
    assert due((active, tainted), kind=X509, now=START + HOUR) == ()
    assert due((active, tainted), kind=X509, now=START + 20 * HOUR) == (Prepare(X509),)


def test_what_signs_and_is_tainted_is_replaced_at_once_and_by_nothing_below_the_same_root() -> None:
    below = {"upstream_authority_id": "r1"}
    active = replace(authority("a", START, DAY), **below)
    prepared = replace(authority("b", START, DAY, AuthorityState.PREPARED), **below)
    good = replace(prepared, upstream_authority_id="r2")
    now, bad = START + HOUR, frozenset({"r1"})
    assert due((active, prepared), kind=X509, now=now) == ()
    assert due((active, prepared), kind=X509, now=now, condemned=bad) == (Prepare(X509),)
    assert due((active, good), kind=X509, now=now, condemned=bad) == (Activate("b"),)
    assert due((replace(active, tainted=True), good), kind=X509, now=now) == (Activate("b"),)
    with pytest.raises(FailedPrecondition) as caught:
        signing_authority((replace(active, tainted=True),), X509, now=now)
    assert caught.value.reason == "AUTHORITY_TAINTED"


def test_a_revoked_one_is_forgotten_at_its_end() -> None:
    revoked, active = authority("a", START, DAY, AuthorityState.REVOKED), authority("b", START + 20 * HOUR, DAY)
    end = START + DAY + PRUNE_GRACE
    assert due((revoked, active), kind=X509, now=end - timedelta(seconds=1)) == ()
    assert next_due((revoked, active), kind=X509, now=START + 21 * HOUR) == end
    assert due((revoked, active), kind=X509, now=end) == (Prune("a"),)


def test_those_who_are_behind_are_waited_for_until_the_last_safe_second() -> None:
    """The end, less the longest SVID, less a margin of a minute at most."""
    active, prepared = authority("a", START, DAY), authority("b", START + 12 * HOUR, DAY, AuthorityState.PREPARED)
    assert last_safe_second(active, HOUR) == START + 23 * HOUR - timedelta(minutes=1)
    minute = authority("a", START, timedelta(minutes=1))
    assert last_safe_second(minute, timedelta(seconds=10)) == START + timedelta(seconds=47.5)

    def until(one: Authority | None, condemned: frozenset[str] = frozenset()) -> datetime:
        return patience(one, prepared, longest_ttl=HOUR, condemned=condemned)

    assert until(active) == last_safe_second(active, HOUR)
    assert until(None) == until(replace(active, tainted=True)) == prepared.not_before  # there is nothing to wait with
    below = replace(active, upstream_authority_id="r1")
    assert until(below, frozenset({"r1"})) == prepared.not_before + CONDEMNED_PATIENCE


@pytest.mark.parametrize(("hint_hours", "signs_hours"), [(0, 20), (8, 20), (9, 21), (50, 23)])
def test_a_successor_is_public_for_the_refresh_hint_before_it_signs(hint_hours: float, signs_hours: float) -> None:
    """SPIFFE Federation §4.1 (H1); but never into the last twenty-fourth of what signs."""
    active, prepared = authority("a", START, DAY), authority("b", START + 12 * HOUR, DAY, AuthorityState.PREPARED)
    hint, signs = hint_hours * HOUR, START + signs_hours * HOUR
    assert activation(active, prepared, hint) == signs
    assert due((active, prepared), kind=X509, now=signs - timedelta(seconds=1), refresh_hint=hint) == ()
    assert due((active, prepared), kind=X509, now=signs, refresh_hint=hint) == (Activate("b"),)
    assert next_due((active, prepared), kind=X509, now=START + 13 * HOUR, refresh_hint=hint) == signs


def test_a_lost_key_is_replaced_at_once() -> None:
    known = apply((authority("a", START, DAY),), Retire("a"))
    assert due(known, kind=X509, now=START + HOUR) == (Prepare(X509),)


def test_an_old_authority_stays_published_to_its_end() -> None:
    old, active = authority("a", START, DAY, AuthorityState.OLD), authority("b", START + 20 * HOUR, DAY)
    end = START + DAY + PRUNE_GRACE
    assert due((old, active), kind=X509, now=end - timedelta(seconds=1)) == ()
    assert due((old, active), kind=X509, now=end) == (Prune("a"),)


def test_an_expired_server_comes_back() -> None:
    """Asleep for a week: new authority, active at once, the dead one pruned."""
    server = Server(life=DAY, svid_ttl=HOUR)
    server.tick(START)
    server.tick(START + 7 * DAY)
    assert server.history[2:] == ["Prepare 168", "Activate 168", "Prune 168"]
    server.issue(START + 7 * DAY)


def test_a_timer_on_next_due_misses_nothing() -> None:
    server, now = Server(life=DAY, svid_ttl=HOUR), START
    server.tick(now)
    while now < START + 10 * DAY:
        upcoming = next_due(server.authorities, kind=X509, now=now)
        assert upcoming > now
        assert due(server.authorities, kind=X509, now=upcoming - timedelta(microseconds=1)) == ()
        now = upcoming
        assert due(server.authorities, kind=X509, now=now)
        assert next_due(server.authorities, kind=X509, now=now) == now
        server.tick(now)
        server.check(now)
    assert server.made == 20 + 1


def test_three_years_of_the_defaults() -> None:
    """Hour by hour: somebody signs, the SVIDs get all of their life, and the bundle stays small."""
    server, now = Server(life=DAY, svid_ttl=HOUR), START
    while now < START + 3 * 365 * DAY:
        server.tick(now)
        server.issue(now)
        server.check(now)
        assert server.svids[-1][1] == now + HOUR
        assert len(server.bundle) <= 3
        now += HOUR
    assert server.made == 2 * 3 * 365


LIVES = st.sampled_from([timedelta(seconds=60), timedelta(minutes=10), DAY, 90 * DAY, 3650 * DAY]) | st.timedeltas(
    timedelta(seconds=30), timedelta(days=1000)
)


@settings(max_examples=200, deadline=None)
@given(LIVES, st.floats(0.001, 0.2), st.floats(0.01, 1))
def test_years_of_regular_ticks(life: timedelta, step: float, ttl_share: float) -> None:
    """Ticks often enough: no SVID is ever cut short that `check_ttls` promised, and H2 and the bundle hold."""
    promised = min(life / 6, timedelta(days=7))
    server = Server(life=life, svid_ttl=promised * ttl_share)
    tick = min(step * life, promised / 4)
    now = START
    for _ in range(150):
        server.tick(now)
        server.issue(now)
        server.check(now)
        # Between two ticks the promise may be missed by at most a tick, which `check_ttls` cannot know.
        assert server.svids[-1][1] >= now + server.svid_ttl - tick
        now += tick


@settings(max_examples=300, deadline=None)
@given(LIVES, st.lists(st.floats(0, 3), min_size=1, max_size=60), st.booleans())
def test_any_steps_of_the_clock(life: timedelta, steps: list[float], lose_keys: bool) -> None:
    """However irregular the ticks (nights asleep, lost keys): after each one somebody published signs."""
    server = Server(life=life, svid_ttl=min(life / 6, timedelta(days=7)))
    now = START
    for number, step in enumerate(steps):
        server.tick(now)
        server.issue(now)
        server.check(now)
        if lose_keys and number % 7 == 6:
            active = find(server.authorities, AuthorityState.ACTIVE, X509)
            assert active is not None
            server.authorities = apply(server.authorities, Retire(active.authority_id))
            server.tick(now)
            server.check(now)
        # One that signs is checked between ticks too, as the wall clock does not wait for us.
        now += step * life


@settings(max_examples=200, deadline=None)
@given(LIVES, st.lists(st.floats(0, 0.05), min_size=30, max_size=120))
def test_successors_are_known_before_they_sign(life: timedelta, steps: list[float]) -> None:
    """Federation §4.1 (H1): with ticks often enough, each authority after the first has been public for a quarter of
    a life (or of sixty days) when it begins to sign."""
    server = Server(life=life, svid_ttl=life / 6)
    server.tick(START)
    now, seen = prepare_at(server.authorities[0]), {"a1"}
    for step in steps:
        server.tick(now)
        active = find(server.authorities, AuthorityState.ACTIVE, X509)
        assert active is not None
        if active.authority_id not in seen:
            seen.add(active.authority_id)
            assert now - active.not_before >= min(life, timedelta(days=60)) / 4
        now += step * min(life, timedelta(days=60))


def test_ttls_that_go_together() -> None:
    check_ttls(ca_ttl_seconds=86400, x509_svid_ttl_seconds=3600, jwt_svid_ttl_seconds=300, agent_ttl_seconds=3600)
    check_ttls(ca_ttl_seconds=86400, x509_svid_ttl_seconds=10, jwt_svid_ttl_seconds=10, agent_ttl_seconds=60)
    check_ttls(ca_ttl_seconds=60, x509_svid_ttl_seconds=10, jwt_svid_ttl_seconds=10, agent_ttl_seconds=10)


@pytest.mark.parametrize(
    ("ca", "x509", "jwt", "agent", "detail", "hint"),
    [
        (21600, 3601, 300, 3600, "x509_svid_ttl_seconds of 3601", "ca_ttl_seconds to 21606 or more"),
        (21600, 3601, 300, 3600, "ca_ttl_seconds of 21600", "x509_svid_ttl_seconds to 3600 or less"),
        (3600, 3600, 700, 600, "jwt_svid_ttl_seconds of 700", "ca_ttl_seconds to 21600 or more"),
        (86400, 3600, 300, 86400, "agent_ttl_seconds", "agent_ttl_seconds to 14400 or less"),
        (5, 1, 1, 1, "ca_ttl_seconds of 5", "ca_ttl_seconds to 6 or more"),
        (0, 1, 1, 1, "ca_ttl_seconds of 0 is not positive", ""),
        (86400, -5, 1, 1, "x509_svid_ttl_seconds of -5 is not positive", ""),
    ],
)
def test_ttls_that_do_not(ca: int, x509: int, jwt: int, agent: int, detail: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ttls(ca_ttl_seconds=ca, x509_svid_ttl_seconds=x509, jwt_svid_ttl_seconds=jwt, agent_ttl_seconds=agent)
    assert detail in caught.value.detail
    assert hint in caught.value.hint
    assert caught.value.reason == "TTL_IMPOSSIBLE"


def test_no_ca_is_long_enough_for_more_than_a_week() -> None:
    with pytest.raises(ConfigError) as caught:
        check_ttls(ca_ttl_seconds=10**8, x509_svid_ttl_seconds=700_000, jwt_svid_ttl_seconds=1, agent_ttl_seconds=1)
    assert caught.value.hint == "set x509_svid_ttl_seconds to 604800 or less"


def test_nothing_fits_a_ca_too_short_for_a_week_too_long() -> None:
    with pytest.raises(ConfigError) as caught:
        check_ttls(ca_ttl_seconds=5, x509_svid_ttl_seconds=700_000, jwt_svid_ttl_seconds=1, agent_ttl_seconds=1)
    assert "at least 6" in caught.value.hint


@given(st.integers(6, 10**9), st.integers(1, 10**7))
def test_the_numbers_in_the_hint_work(ca: int, ttl: int) -> None:
    def fits(ca: int, ttl: int) -> bool:
        try:
            check_ttls(ca_ttl_seconds=ca, x509_svid_ttl_seconds=ttl, jwt_svid_ttl_seconds=1, agent_ttl_seconds=1)
        except ConfigError:
            return False
        return True

    assert fits(ca, longest_svid_ttl(ca))
    assert not fits(ca, longest_svid_ttl(ca) + 1)
    if ttl <= 604800:
        assert fits(ttl * 6, ttl)
