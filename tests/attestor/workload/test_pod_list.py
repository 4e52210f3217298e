"""What is read out of a kubelet's answer, whatever it says; and how seldom it is asked."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestor.workload.pod_snapshots import Pace
from ca.errors import Unavailable
from ca.identity.selector import Selector
from ca.runtime.pod_list import Pods, parse_pods
from ca.runtime.pod_selectors import container_selectors, pod_selectors
from tests.support.kubelet import pod, pod_list, status
from tests.support.proc_trees import ID, OTHER, OTHER_POD, POD

GOOD = pod(
    "web",
    status("main", ID),
    uid=POD,
    labels={"app": "web"},
    initContainerStatuses=[status("init", OTHER)],
)
GOOD["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "web", "uid": "u"}]
GOOD["metadata"]["annotations"] = {"kubernetes.io/config.source": "api"}
BODY = pod_list([GOOD, pod("other", status("main", "1" * 64), uid=OTHER_POD)])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


def parsed(body: bytes) -> Pods | None:
    """None for what is refused as a whole."""
    with contextlib.suppress(Unavailable):
        return parse_pods(body)
    return None


def check(pods: Pods | None) -> None:
    """Whatever was accepted becomes selectors that can be sent and shown."""
    if pods is None:
        return
    for one, container in pods.by_container.values():
        for value in [*pod_selectors(one), *container_selectors(container)]:
            assert value.isascii()
            assert value.isprintable()
            assert Selector("k8s", value)
    assert not pods.claimed_twice & (pods.by_uid.keys() | pods.by_container.keys())


def test_the_good_one() -> None:
    pods = parse_pods(BODY)
    assert {one.name for one in pods.by_uid.values()} == {"web", "other"}
    assert pods.by_container[OTHER][1].name == "init"
    assert pods.malformed == 0


@pytest.mark.parametrize("items", [None, []])
def test_a_node_without_pods(items: Any) -> None:
    assert parse_pods(json.dumps({"kind": "PodList", "items": items}).encode()).by_uid == {}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b'{"kind":"Status"}', b'{"kind":"PodList","items":{}}', b"\xff"]
)
def test_what_is_no_list_of_pods(body: bytes) -> None:
    with pytest.raises(Unavailable) as caught:
        parse_pods(body)
    assert caught.value.reason == "KUBELET_ANSWER"


@given(st.binary(max_size=200))
def test_junk(body: bytes) -> None:
    check(parsed(body))


@given(index=st.integers(0, len(BODY) * 8 - 1))
def test_flipped_bits(index: int) -> None:
    flipped = bytearray(BODY)
    flipped[index // 8] ^= 1 << index % 8
    check(parsed(bytes(flipped)))


@given(where=st.lists(st.integers(0, 9), max_size=5), value=JSON)
def test_anything_anywhere(where: list[int], value: Any) -> None:
    """A value of the answer is replaced by another one; the neighbour is there still, or all was refused."""
    answer = json.loads(BODY)
    target: Any = answer["items"][0]
    for step in where:
        names = (
            list(target) if isinstance(target, dict) else list(range(len(target))) if isinstance(target, list) else []
        )
        if not names:
            break
        name = names[step % len(names)]
        if not isinstance(target[name], dict | list) or step == where[-1]:
            target[name] = value
            break
        target = target[name]
    pods = parsed(json.dumps(answer).encode())
    check(pods)
    assert pods is not None
    assert OTHER_POD in pods.by_uid or OTHER_POD in pods.claimed_twice


def test_the_pace_of_questions() -> None:
    """At once after a rest, then after the interval, then after twice as long; and it never runs ahead."""
    pace, now, waits = Pace(0.5), 100.0, []
    for _ in range(4):
        waits.append(pace.wait_seconds(now))
        now += waits[-1]
        pace.asked(now)
    assert waits == [0.0, 0.5, 1.0, 1.0]
    now += 1.2
    assert pace.wait_seconds(now) == 0.0
    pace.asked(now)
    assert pace.wait_seconds(now) == 0.5
