"""Certificates of an upstream put in order, however many lead into each other."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ca.errors import FailedPrecondition
from ca.ports import AuthorityHost, UpstreamCa
from ca.upstream import chain, rehearsal
from ca.upstream.chain import MAX_SIGNATURE_CHECKS, arrange
from tests.ca.identity import forge
from tests.support.clock import FakeClock


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The signatures that were checked."""
    made: list[bytes] = []
    real = chain.is_issued_by

    def counted(child: bytes, authority: bytes) -> bool:
        made.append(child)
        return real(child, authority)

    monkeypatch.setattr(chain, "is_issued_by", counted)
    return made


def test_the_shortest_way_up_is_found_and_other_names_cost_nothing(checks: list[bytes]) -> None:
    top = forge.root()
    upper = forge.intermediate(top, "upper")
    lower = forge.intermediate(upper, "lower")
    strangers = [forge.root(f"stranger-{number}") for number in range(20)]
    found = arrange(lower.der, [*(s.der for s in strangers), top.der, upper.der, lower.der])
    assert found == ((upper.der,), (*(s.der for s in strangers), top.der))
    assert len(checks) <= len(strangers) + 5


def test_many_rotated_roots_of_one_name_are_no_attack() -> None:
    roots = [forge.root("root", key=forge.key("P-256", f"root-{number}")) for number in range(60)]
    upper = forge.intermediate(roots[-1], "upper")
    lower = forge.intermediate(upper, "lower")
    assert arrange(lower.der, [upper.der, *(r.der for r in roots)]) == ((upper.der,), tuple(r.der for r in roots))


def test_certificates_that_all_have_one_name_are_refused_before_they_take_long(checks: list[bytes]) -> None:
    crowd = [forge.root("x", key=forge.key("P-256", "x"))]
    for number in range(40):
        crowd.append(forge.intermediate(crowd[-1], "x", key=forge.key("P-256", f"x-{number}")))
    del crowd[0]
    with pytest.raises(FailedPrecondition) as refused:
        arrange(crowd[-1].der, [one.der for one in crowd[:-1]])
    assert refused.value.reason == "UPSTREAM_CHAIN_TOO_COMPLEX"
    assert len(checks) == MAX_SIGNATURE_CHECKS


def test_keys_beyond_all_measure_are_not_tried(monkeypatch: pytest.MonkeyPatch, checks: list[bytes]) -> None:
    monkeypatch.setattr(chain, "RSA_BITS", range(2048, 2048))
    with pytest.raises(FailedPrecondition) as refused:
        arrange(forge.root(key=forge.key("RSA-2048", "root")).der, [])
    assert refused.value.reason == "UPSTREAM_WEAK"
    assert checks == []


async def test_an_answer_is_proved_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[threading.Thread] = []
    real = rehearsal.prove

    def watched(*args: Any, **kwargs: Any) -> Any:
        where.append(threading.current_thread())
        return real(*args, **kwargs)

    monkeypatch.setattr(rehearsal, "prove", watched)

    async def mint(csr: bytes, ttl_seconds: int) -> UpstreamCa:
        return UpstreamCa(chain=(), roots=())

    host = AuthorityHost(trust_domain=forge.TD, clock=FakeClock(), server="s1", data_directory="")
    done = await rehearsal.rehearse(mint, host, ttl_seconds=3600)
    assert done.error is not None
    assert done.error.reason == "UPSTREAM_CHAIN_EMPTY"
    assert where
    assert where[0] is not threading.main_thread()
