"""When Python's cyclic garbage collector looks at everything, and when it must not."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest

from ca.runtime.collector import paused
from policy.envoy_names import parsed
from policy.envoy_shares import Shares
from sds.policy_filters import make
from sds.policy_held import _read
from tests.support.policy_node import authorization, policy_set, workload


@contextmanager
def collections() -> Iterator[list[int]]:
    """The generations that are collected meanwhile."""
    seen: list[int] = []

    def told(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(told)
    try:
        yield seen
    finally:
        gc.callbacks.remove(told)


def test_it_is_paused_until_the_last_who_wants_it_has_ended() -> None:
    together, enabled = Barrier(2), []

    def work(first: bool) -> None:
        with paused():
            together.wait(10)
            enabled.append(gc.isenabled())
            if first:
                together.wait(10)
        if not first:
            enabled.append(gc.isenabled())
            together.wait(10)

    assert gc.isenabled()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, (True, False)))
    assert enabled == [False, False, False]
    assert gc.isenabled()


def test_who_had_none_has_none_afterwards() -> None:
    gc.disable()
    try:
        with paused(), paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_failure_does_not_leave_it_paused() -> None:
    with pytest.raises(ValueError, match="x"), paused():
        raise ValueError("x")
    assert gc.isenabled()


def test_reading_policies_and_making_filters_of_them_starts_none() -> None:
    """It would look at all policies of the node, during which nobody is answered."""
    rules = [{"to": [{"operation": {"paths": [f"/{number}"]}}]} for number in range(2000)]
    written = (authorization(f"p{n}", rules=rules[n : n + 500]) for n in range(0, 2000, 500))
    payload = policy_set(1, workload("w", "/w"), *written)
    resource = parsed("burgee.http.policy")
    assert resource is not None
    gc.collect()  # so that none is due already
    with collections() as seen:
        policies = _read(payload, None)
        made = make(policies.matched("spiffe://example.org/w", ()), resource, (), Shares(), lasting=False)
    assert len(made.found.resource) > 300_000
    assert not [generation for generation in seen if generation]
