"""The k8s attestor and its kubelet: how long it waits, how seldom it asks, and what goes wrong in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.errors import Unauthenticated
from ca.runtime import threads
from ca.runtime.cpu import metering
from ca.runtime.notes import collecting
from tests.attestor.processes import SLEEP, child, pinned
from tests.attestor.workload.k8s_node import HASTY, Node, in_pod, reason, tree, until, values
from tests.support.kubelet import COARSE, Object, StandInKubelet, many_pods, pod, pod_list, status
from tests.support.pair import free_port
from tests.support.proc_trees import ID, OTHER, POD
from tests.support.tls_ca import TlsCa


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    with made.kubelet:
        yield made
    made.close()


# How it waits


async def test_a_pod_that_is_starting_is_waited_for(node: Node) -> None:
    """First the kubelet knows nothing of it, then the pod and no container, then all."""
    ready, node.pods = node.pods, []
    looking = asyncio.create_task(values(node.attestor(), node.process()))
    await until(lambda: node.asked >= 2)
    node.pods = [pod("web", status("main", ""), uid=POD)]
    seen = node.asked
    await until(lambda: node.asked >= seen + 2)
    assert not looking.done()
    node.pods = ready
    assert "pod-name:web" in await looking


async def test_a_container_that_was_restarted_is_asked_for_again(node: Node) -> None:
    attestor = node.attestor(cache_seconds=60.0)
    assert await values(attestor, node.process())
    looking = asyncio.create_task(values(attestor, node.process(in_pod(container=OTHER))))
    await until(lambda: node.asked >= 2)
    assert not looking.done()
    again = status("main", OTHER) | {"lastState": {"terminated": {"containerID": f"containerd://{ID}"}}}
    node.pods = [pod("web", again, uid=POD)]
    assert "container-name:main" in await looking


@pytest.mark.parametrize(
    ("pods", "expected"),
    [([], "K8S_POD_UNKNOWN"), ([pod("web", status("main", ""), uid=POD)], "K8S_CONTAINER_UNKNOWN")],
)
async def test_the_wait_ends(node: Node, pods: list[Object], expected: str) -> None:
    node.pods = pods
    assert await reason(node.attestor(**HASTY), node.process()) == expected
    assert node.asked >= 2


async def test_a_kubelet_that_hangs_is_not_a_pod_that_is_unknown(node: Node) -> None:
    node.kubelet.delay_seconds = 2.0
    attestor = node.attestor(**HASTY)
    assert await reason(attestor, node.process()) == "KUBELET_UNREACHABLE"


async def test_a_pod_alone_is_found_before_its_container_is_known(node: Node) -> None:
    node.pods = [pod("web", status("main", ""), uid=POD)]
    found = await values(node.attestor(disable_container_selectors=True), node.process())
    assert f"pod-uid:{POD}" in found
    assert node.asked == 1


async def test_who_dies_while_it_is_waited_for_is_not_waited_for_any_longer(node: Node) -> None:
    node.pods = []
    with child([SLEEP, "60"]) as process, pinned(process.pid, tree(node.directory / "dying", in_pod())) as pin:
        looking = asyncio.create_task(node.attestor().attest(pin))
        await until(lambda: node.asked >= 1)
        process.kill()
        process.wait()
        with pytest.raises(Unauthenticated):
            await looking


async def test_those_who_wait_share_a_request_and_one_who_leaves_takes_it_from_nobody(node: Node) -> None:
    node.kubelet.delay_seconds = 0.2
    attestor = node.attestor()
    with threads.watch() as unfinished:
        first = asyncio.create_task(values(attestor, node.process()))
        await until(lambda: node.asked == 1)
        first.cancel()
        await asyncio.wait([first])
        assert unfinished() == (), "a request counts against nobody who waited for it"
    found = await asyncio.gather(*(values(attestor, node.process()) for _ in range(20)))
    assert all("pod-name:web" in one for one in found)
    assert node.asked <= 2


async def test_an_answer_serves_for_a_moment_and_a_new_label_is_seen_after_it(node: Node) -> None:
    attestor = node.slow(cache_seconds=2.0)
    assert "pod-label:tier:front" not in await values(attestor, node.process())
    node.pods = [pod("web", status("main", ID), uid=POD, labels={"tier": "front"})]
    node.now += 1.9
    for _ in range(10):
        assert "pod-label:tier:front" not in await values(attestor, node.process())
    assert node.asked == 1
    node.now += 0.2
    for _ in range(10):
        assert "pod-label:tier:front" in await values(attestor, node.process())
    assert node.asked == 2


# When the kubelet does not answer, or not to us


async def test_each_fault_has_its_own_reason(node: Node, tmp_path: Path) -> None:
    process, faults = node.process(), {}
    node.kubelet.status = 500
    faults["status"] = await reason(node.attestor(), process)
    node.kubelet.status = None
    node.kubelet.body = b'{"kind": "PodList", "items": {}}'
    faults["answer"] = await reason(node.attestor(), process)
    node.kubelet.body = b"x" * (1 << 17)
    faults["size"] = await reason(node.attestor(max_answer_bytes=1 << 16), process)
    node.kubelet.body = None
    node.gate.granted["agent"] = None
    faults["permission"] = await reason(node.attestor(), process)
    node.gate.granted.clear()
    attestor = node.attestor()
    (node.directory / "agent" / "token").write_text("somebody's")
    faults["token"] = await reason(attestor, process)
    (node.directory / "agent" / "token").write_text("\n")
    faults["no token"] = await reason(attestor, process)
    attestor = node.attestor()
    (node.directory / "agent" / "ca.pem").write_bytes(TlsCa("another").pem)
    faults["certificate"] = await reason(attestor, process)
    faults["no file"] = await reason(node.attestor(kubelet_ca_file=str(tmp_path / "nowhere")), process)
    faults["nobody"] = await reason(node.attestor(**HASTY, kubelet_port=1), process)
    assert faults == {
        "status": "KUBELET_ANSWER",
        "answer": "KUBELET_ANSWER",
        "size": "KUBELET_ANSWER",
        "permission": "KUBELET_FORBIDDEN",
        "token": "KUBELET_UNAUTHENTICATED",
        "no token": "KUBELET_FILES",
        "certificate": "KUBELET_UNTRUSTED",
        "no file": "KUBELET_FILES",
        "nobody": "KUBELET_UNREACHABLE",
    }


async def test_a_certificate_for_another_name_proves_nothing(node: Node) -> None:
    assert await reason(node.attestor(kubelet_address="localhost"), node.process()) == "KUBELET_UNTRUSTED"


async def test_nobody_is_shown_the_token_who_does_not_prove_to_be_the_kubelet(node: Node) -> None:
    attestor = node.attestor()
    (node.directory / "agent" / "ca.pem").write_bytes(TlsCa("another").pem)
    await reason(attestor, node.process())
    assert node.asked == 0


async def test_token_and_authority_are_read_again(node: Node) -> None:
    attestor, process = node.attestor(), node.process()
    assert await values(attestor, process)
    node.gate.tokens = {"renewed": "agent"}
    assert await reason(attestor, process) == "KUBELET_UNAUTHENTICATED"
    (node.directory / "agent" / "token").write_text("renewed")
    assert await values(attestor, process)
    (node.directory / "agent" / "ca.pem").write_bytes(TlsCa("another").pem)
    assert await reason(attestor, process) == "KUBELET_UNTRUSTED"
    (node.directory / "agent" / "ca.pem").write_bytes(node.kubelet.ca.pem)
    assert await values(attestor, process)


async def test_whoever_answers_is_believed_only_where_that_is_said_and_then_it_is_logged(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    attestor = node.attestor(skip_kubelet_verification=True, kubelet_ca_file="/nowhere")
    assert "pod-name:web" in await values(attestor, node.process())
    assert "KUBELET_UNVERIFIED" in capsys.readouterr().err


async def test_nodes_proxy_is_not_needed(node: Node) -> None:
    await values(node.attestor(), node.process())
    assert COARSE not in node.kubelet.used


async def test_what_the_kubelet_said_counts_for_a_while_after_it_fell_silent(node: Node) -> None:
    attestor, process = node.slow(stale_seconds=30.0), node.process()
    assert "pod-name:web" in await values(attestor, process)
    node.kubelet.status = 503
    for seconds in (5, 10, 14):
        node.now += seconds
        with collecting() as notes:
            assert "pod-name:web" in await values(attestor, process)
        assert "KUBELET_ANSWER" in dict(notes)["kubelet"]
    node.now += 2
    assert await reason(attestor, process) == "KUBELET_ANSWER"
    node.kubelet.status = None
    node.now += 5
    assert "pod-name:web" in await values(attestor, process)


async def test_a_silent_kubelet_is_not_waited_for_by_everybody(node: Node) -> None:
    attestor, process = node.slow(), node.process()
    assert await values(attestor, process)
    node.kubelet.status = 503
    node.now += 3
    for _ in range(10):
        assert await values(attestor, process)
    assert node.asked == 2


async def test_a_kubelet_that_comes_back_finds_those_who_wait(node: Node) -> None:
    """Connections that are refused pass, as while it restarts."""
    port = free_port()
    attestor = node.attestor(kubelet_port=port)
    looking = asyncio.create_task(values(attestor, node.process()))
    await until(lambda: attestor.snapshots.requests >= 2)
    assert not looking.done()
    with StandInKubelet(lambda: node.pods, node.gate, port=port, ca=node.kubelet.ca):
        assert "pod-name:web" in await looking


async def test_nothing_says_which_kubelet_is_this_nodes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    attestor = node.attestor(kubelet_address=None)
    assert await reason(attestor, node.process()) == "KUBELET_UNKNOWN"
    monkeypatch.setenv("MY_NODE_NAME", "not a name")
    assert await reason(attestor, node.process()) == "KUBELET_UNKNOWN"
    monkeypatch.setenv("MY_NODE_IP", "127.0.0.1")
    assert await values(attestor, node.process())


async def test_whoever_asks_first_pays_for_the_question(node: Node) -> None:
    """Out of the agent's budget for attesting again: processor time, which is much for a hundred pods."""
    node.kubelet.body = pod_list([*many_pods(110), *node.pods])
    attestor, process, spent = node.attestor(cache_seconds=60.0), node.process(), []
    for _ in range(2):
        with metering() as meter:
            assert await asyncio.create_task(values(attestor, process))
        spent.append(meter.seconds)
    assert spent[0] > 3 * spent[1] > 0


def test_its_deadline_is_longer_than_its_wait(node: Node) -> None:
    assert node.attestor(max_wait_seconds=30.0).deadline_seconds > 30.0
