"""On which authorities a chain hangs, and whether the first that the bundle knows is tainted."""

from __future__ import annotations

import pytest

from ca.identity.bundle import TrustBundle, X509Authority, authority_id
from ca.identity.lineage import Taints, issuer_ids
from tests.ca.identity.forge import TD, Authority, intermediate, key, root

OLD, NEW = root("old"), root("new")
BELOW_OLD = intermediate(OLD, "below")
DEEPER = intermediate(BELOW_OLD, "deeper")


def name(authority: Authority) -> str:
    return authority_id(authority.der)


def bundle(*clean: Authority, tainted: tuple[Authority, ...] = ()) -> TrustBundle:
    marked = [X509Authority(certificate=a.der) for a in clean]
    marked += [X509Authority(certificate=a.der, tainted=True) for a in tainted]
    return TrustBundle(trust_domain=TD, x509_authorities=tuple(marked))


def test_the_issuers_are_those_of_the_chain_nearest_first() -> None:
    assert issuer_ids(name(OLD)) == (name(OLD),)
    for chain in ((DEEPER.der, BELOW_OLD.der), (BELOW_OLD.der, DEEPER.der)):  # in any order
        assert issuer_ids(name(DEEPER), chain) == (name(DEEPER), name(BELOW_OLD), name(OLD))
    assert issuer_ids(name(NEW), (BELOW_OLD.der,)) == (name(NEW),)  # what does not belong to it counts for nothing


def test_what_cannot_be_read_leads_nowhere() -> None:
    assert issuer_ids("") == ()
    assert issuer_ids(name(BELOW_OLD), (b"no certificate",)) == (name(BELOW_OLD),)


def test_a_chain_that_names_itself_comes_to_an_end() -> None:
    assert issuer_ids(name(OLD), (OLD.der,)) == (name(OLD),)


@pytest.mark.parametrize(
    ("issuers", "held", "expected"),
    [
        ((OLD,), bundle(NEW, tainted=(OLD,)), True),
        ((NEW,), bundle(NEW, tainted=(OLD,)), False),
        ((DEEPER, BELOW_OLD, OLD), bundle(NEW, tainted=(OLD,)), True),  # through intermediates
        ((NEW, OLD), bundle(NEW, tainted=(OLD,)), False),  # clean, and vouched for by a tainted one besides
        ((OLD, NEW), bundle(NEW, tainted=(OLD,)), True),  # tainted, whoever vouches for it
        ((OLD,), bundle(tainted=(OLD,)), False),  # nothing better could be had
        ((OLD,), bundle(NEW), False),
        ((), bundle(NEW, tainted=(OLD,)), False),
    ],
)
def test_taint(issuers: tuple[Authority, ...], held: TrustBundle, expected: bool) -> None:
    assert Taints.of(held).reach([name(one) for one in issuers]) is expected


def test_a_key_with_a_tainted_certificate_is_tainted_in_all_of_them() -> None:
    twin = root("old again", key=key("P-256", "old"))
    taints = Taints.of(bundle(twin, NEW, tainted=(OLD,)))
    assert name(twin) == name(OLD)
    assert taints.reach((name(OLD),))


def test_no_bundle_no_taint() -> None:
    assert not Taints.of(None).reach((name(OLD),))
