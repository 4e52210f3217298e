"""What is remembered of authorities that went before their time, and what an old copy of a bundle is still good for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ca.identity.bundle import TrustBundle, X509Authority
from sds import dropped
from sds.dropped import Dropped, remember, without
from tests.ca.identity.forge import TD, key
from tests.sds.fake_server import fresh_root

NOW = datetime.now(UTC)
OLD, NEW = (fresh_root(name, key=key("P-256", name)) for name in ("old", "new"))


def bundle(*authorities: X509Authority) -> TrustBundle:
    return TrustBundle(trust_domain=TD, x509_authorities=authorities)


def clean(*roots: bytes) -> TrustBundle:
    return bundle(*(X509Authority(certificate=root) for root in roots))


def test_what_goes_before_its_end_is_remembered_until_its_end() -> None:
    known = remember((), before=clean(OLD.der, NEW.der), after=clean(NEW.der), now=NOW)
    assert [item.not_after - NOW < timedelta(days=31) for item in known] == [True]
    assert without(clean(OLD.der, NEW.der), known) == clean(NEW.der)
    assert without(clean(OLD.der), known).x509_authorities == ()
    assert remember(known, before=clean(NEW.der), after=clean(NEW.der), now=NOW) == known
    assert remember(known, before=clean(NEW.der), after=clean(NEW.der), now=NOW + timedelta(days=31)) == ()


def test_what_ended_by_itself_is_not_worth_remembering() -> None:
    later = NOW + timedelta(days=31)
    assert remember((), before=clean(OLD.der, NEW.der), after=clean(NEW.der), now=later) == ()


def test_a_taint_counts_while_the_authority_is_still_listed() -> None:
    tainted = bundle(X509Authority(certificate=OLD.der, tainted=True), X509Authority(certificate=NEW.der))
    known = remember((), before=clean(OLD.der, NEW.der), after=tainted, now=NOW)
    assert without(clean(OLD.der, NEW.der), known) == clean(NEW.der)
    assert remember(known, before=tainted, after=clean(NEW.der), now=NOW) == known


def test_a_verified_server_may_list_it_again() -> None:
    known = remember((), before=clean(OLD.der, NEW.der), after=clean(NEW.der), now=NOW)
    assert remember(known, before=clean(NEW.der), after=clean(OLD.der, NEW.der), now=NOW) == ()


def test_what_was_never_held_is_not_held_against_anybody() -> None:
    assert remember((), before=None, after=clean(NEW.der), now=NOW) == ()
    offered = clean(OLD.der)
    assert without(offered, ()) is offered


def test_what_cannot_be_parsed_is_passed_over() -> None:
    assert remember((), before=clean(b"nonsense", NEW.der), after=clean(NEW.der), now=NOW) == ()


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    many = [
        Dropped(fingerprint=number.to_bytes(32), not_after=NOW + timedelta(hours=number + 1))
        for number in range(dropped.MAX_DROPPED + 40)
    ]
    known = remember(many, before=None, after=clean(NEW.der), now=NOW)
    assert known == tuple(many[40:]), "those that end first go"
