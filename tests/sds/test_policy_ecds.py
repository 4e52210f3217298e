"""What proxies are told of policies over a real socket, and what is kept for it, without any Envoy."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2
from structlog.testing import capture_logs

from ca.identity.selector import Selector
from ca.runtime.metrics import REGISTRY
from policy.decision import Reason
from policy.envoy import deny_all
from policy.model import Request
from sds.envoy_delta import DeltaStream
from sds.envoy_status import NACKS
from sds.policy_answers import FOUND_BYTES, Caller, PolicyAnswers, owner_of
from sds.policy_ecds import LARGE_BYTES, MAX_LARGE, MAX_NAMES
from sds.policy_filters import refusing
from sds.policy_held import NONE_YET, TAKEN_AWAY
from sds.policy_read import read
from sds.policy_rollout import rollout, unlogged
from tests.sds.lab import WEB, Lab, entry, eventually, quiet, refused
from tests.support.policy_node import allowing, authorization, policy_set, workload
from tests.support.workload_client import ECDS, DeltaCall, WorkloadClient

HTTP = "burgee.http.policy"
A = "spiffe://example.org/a"
DESCRIBED = workload("a", "/a")
SET = policy_set(1, DESCRIBED, allowing("p", paths=["/x"]))


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab() as lab:
        lab.snapshot(entry("a"))
        yield lab


@pytest.fixture
async def client(lab: Lab) -> AsyncIterator[WorkloadClient]:
    async with lab.client() as client:
        yield client


async def given(lab: Lab, payload: bytes) -> None:
    lab.policies.take(payload)
    await eventually(lambda: lab.policies.payload == payload)


def filters(answer: discovery_pb2.DeltaDiscoveryResponse) -> dict[str, RBAC]:
    """Name → filter."""
    found = {}
    for resource in answer.resources:
        typed = TypedExtensionConfig()
        assert resource.resource.Unpack(typed)
        assert typed.name == resource.name
        found[resource.name] = RBAC()
        assert typed.typed_config.Unpack(found[resource.name])
    return found


async def answered(call: DeltaCall) -> dict[str, RBAC]:
    found = filters(await asyncio.wait_for(call.read(), 5))
    await call.ack()
    return found


def states(lab: Lab) -> dict[str, tuple[str, str]]:
    return {s.resource: (s.state, s.detail) for s in rollout(lab.policies, lab.clients, unlogged).proxies}


async def test_while_there_are_none_nothing_is_said_and_the_reason_is_known(lab: Lab, client: WorkloadClient) -> None:
    call = client.policies()
    await call.ask(HTTP)
    await eventually(lambda: states(lab) == {HTTP: ("unanswered", NONE_YET)})
    await given(lab, SET)
    assert (await answered(call))[HTTP] != deny_all()
    await eventually(lambda: states(lab) == {HTTP: ("acked", "")})
    lab.policies.take(None)
    assert await answered(call) == {HTTP: deny_all()}
    await eventually(lambda: states(lab) == {HTTP: ("acked", f"everything is refused: {TAKEN_AWAY}")})
    lab.policies.forget()
    await eventually(lambda: states(lab)[HTTP][1] == f"no longer given: {NONE_YET}")
    await quiet(call.call)


async def test_who_was_new_while_the_server_was_polled_is_called_when_it_pushes_what_it_did(
    lab: Lab, client: WorkloadClient
) -> None:
    await given(lab, SET)
    lab.policies.heard(polled=True, newcomers=frozenset({"spiffe://example.org/new"}))
    lab.snapshot(entry("new"))
    call = client.policies()
    await call.ask(HTTP)
    assert await answered(call) == {HTTP: deny_all()}
    lab.policies.heard(polled=False)
    lab.policies.take(SET)
    assert (await answered(call))[HTTP] != deny_all()


async def test_a_name_is_answered_as_often_as_it_is_asked_for(lab: Lab, client: WorkloadClient) -> None:
    await given(lab, SET)
    call = client.policies()
    for _ in range(3):
        await call.ask(HTTP)
        assert HTTP in await answered(call)
    version = call.last.resources[0].version
    again = client.policies()
    await again.ask(HTTP, initial_resource_versions={HTTP: version})
    await eventually(lambda: len(lab.clients) == 2 and states(lab)[HTTP] == ("acked", ""))
    await quiet(again.call)
    other = client.policies()
    await other.ask(HTTP, initial_resource_versions={HTTP: "another"})
    assert HTTP in await answered(other)


async def test_names_that_are_none_of_ours_and_wildcards_get_nothing(lab: Lab, client: WorkloadClient) -> None:
    await given(lab, SET)
    call = client.policies()
    await call.ask("burgee.http.policy+jwt+ask", HTTP)
    answer = await asyncio.wait_for(call.read(), 5)
    assert [r.name for r in answer.resources] == [HTTP]
    assert list(answer.removed_resources) == ["burgee.http.policy+jwt+ask"]
    everything = client.policies()
    await everything.ask()
    await quiet(everything.call)


async def test_an_answer_without_a_stream(lab: Lab, client: WorkloadClient) -> None:
    async def fetched(*names: str) -> list[str]:
        answer = await client.fetch_secrets(*names, rpc=f"{ECDS}/FetchExtensionConfigs")
        typed = TypedExtensionConfig()
        return [typed.name for resource in answer.resources if resource.Unpack(typed)]

    waiting = asyncio.create_task(fetched(HTTP))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await given(lab, SET)
    assert await waiting == [HTTP]
    assert await fetched(f"{HTTP}/spiffe://example.org/b") == [f"{HTTP}/spiffe://example.org/b"]  # which refuses all
    assert (await refused(fetched("strange")))[0] == grpc.StatusCode.INVALID_ARGUMENT.name


async def test_what_changes_for_others_is_not_sent_and_counts_as_taken_over(lab: Lab, client: WorkloadClient) -> None:
    await given(lab, SET)
    call = client.policies()
    await call.ask(HTTP)
    await answered(call)
    elsewhere = policy_set(2, DESCRIBED, allowing("p", paths=["/x"]), allowing("q", "elsewhere"))
    await given(lab, elsewhere)
    await eventually(lambda: [s.revision for s in rollout(lab.policies, lab.clients, unlogged).proxies] == [2])
    assert states(lab) == {HTTP: ("acked", "")}
    await quiet(call.call)


async def test_a_proxy_whose_decisions_reach_no_log_is_unlogged(lab: Lab, client: WorkloadClient) -> None:
    call = client.policies()
    await call.ask(HTTP)
    await given(lab, SET)
    await answered(call)
    (state,) = rollout(lab.policies, lab.clients, unlogged).proxies
    assert state.unlogged
    mine = (state.pid, state.proxy)
    (state,) = rollout(lab.policies, lab.clients, lambda pid, node: (pid, node) == mine).proxies
    assert not state.unlogged


async def test_what_is_rejected_leaves_the_one_before_in_force_and_everybody_is_told(
    lab: Lab, client: WorkloadClient
) -> None:
    """`in_force` is the newest revision that the proxy went by, also where that changed nothing for it."""
    no = status_pb2.Status(code=13, message="no such matcher")
    counted = NACKS._value.get()

    def told() -> tuple[str, int, int]:
        (state,) = rollout(lab.policies, lab.clients, unlogged).proxies
        return state.state, state.revision, state.in_force

    def rejected() -> float | None:
        return REGISTRY.get_sample_value("burgee_agent_sds_rejected")

    call = client.policies()
    await call.ask(HTTP)
    await given(lab, SET)
    await asyncio.wait_for(call.read(), 5)
    await call.ack(error_detail=no)
    await eventually(lambda: told() == ("nacked", 1, 0))  # it refuses everything, or goes by what it had before
    await given(lab, policy_set(2, DESCRIBED, allowing("p", paths=["/a"])))
    await answered(call)
    await eventually(lambda: told() == ("acked", 2, 0))
    await given(lab, policy_set(3, DESCRIBED, allowing("p", paths=["/a"]), allowing("q", "elsewhere")))
    await eventually(lambda: told() == ("acked", 3, 0))
    for revision, path in ((4, "/b"), (5, "/c")):
        with capture_logs() as logged:
            await given(lab, policy_set(revision, DESCRIBED, allowing("p", paths=[path])))
            await asyncio.wait_for(call.read(), 5)
            await call.ack(error_detail=no)
            await eventually(lambda wanted=revision: told() == ("nacked", wanted, 3))  # type: ignore[misc]
        (line,) = (one for one in logged if one.get("reason") == "SDS_NACK")
        assert (line["log_level"], line["name"], line["in_force"], line["detail"]) == ("warning", HTTP, "3", no.message)
    assert (NACKS._value.get() - counted, rejected()) == (3, 1)
    await given(lab, policy_set(6, DESCRIBED, allowing("p", paths=["/d"])))
    await answered(call)
    await eventually(lambda: told() == ("acked", 6, 0))
    assert rejected() == 0


async def test_a_workload_is_known_by_what_was_attested(lab: Lab, client: WorkloadClient) -> None:
    """Not by what a Workload object says of it, where it is a pod."""

    def pod(**labels: str) -> frozenset[Selector]:
        found = {f"pod-label:{name}:{value}" for name, value in labels.items()} | {"ns:b"}
        return frozenset({WEB, *(Selector("k8s", value) for value in found)})

    lab.selectors = pod(app="web")
    labelled = authorization("l", "b", labels={"app": "web"}, rules=[{}])
    await given(lab, policy_set(1, DESCRIBED, allowing("p"), labelled))
    call = client.policies()
    await call.ask(HTTP)
    first = (await answered(call))[HTTP]
    assert "b/l#0" in str(first)
    assert "a/p#0" not in str(first)
    lab.selectors = pod(app="other")
    lab.workloads.again.follow(next(iter(lab.workloads._known.values())))
    for workload_ in list(lab.workloads._known.values()):
        await lab.workloads._again(workload_)
    assert "b/l#0" not in str((await answered(call))[HTTP])


async def test_of_a_namespace_that_was_not_told_nobody_is_let_in(lab: Lab, client: WorkloadClient) -> None:
    """Policies of it that deny may be missing here."""
    everybody = allowing("everybody", "root")
    await given(lab, policy_set(1, DESCRIBED, everybody, namespaces=["b", "root"]))
    call = client.policies()
    await call.ask(HTTP)
    assert await answered(call) == {HTTP: deny_all()}
    await eventually(lambda: "not sent this agent the policies of the namespace `a`" in states(lab)[HTTP][1])
    in_force = lab.policies.in_force
    assert in_force is not None
    decision = in_force.snapshot(in_force.matched(A, [WEB])).decide(A, Request(principal="example.org/x"))
    assert (decision.allowed, decision.reason) == (False, Reason.UNKNOWN_TARGET)
    await given(lab, policy_set(2, DESCRIBED, everybody, namespaces=["a", "root"]))
    assert "root/everybody#0" in str((await answered(call))[HTTP])


async def test_names_that_mean_nothing_are_counted_and_the_stream_ends_when_they_are_too_many(
    lab: Lab, client: WorkloadClient
) -> None:
    await given(lab, SET)
    call = client.policies()
    names = [f"{HTTP}/spiffe://example.org/{'n' * 40}{number}" for number in range(500)]
    await call.ask(*names)
    answer = await asyncio.wait_for(call.read(), 5)
    assert (len(answer.resources), len(answer.removed_resources)) == (MAX_NAMES, len(names) - MAX_NAMES)
    (junk,) = lab.clients.all()
    assert "64 names are answered" in junk.stream.statuses[max(names)].detail
    share = next(iter(lab.workloads._known.values())).share
    await eventually(lambda: lab.workloads.memory.used(share) > MAX_NAMES * (FOUND_BYTES + 300) + 500 * 600)
    calls = [client.policies() for _ in range(60)]

    async def ends(other: DeltaCall) -> bool:
        try:
            await other.ask(*names)
            await other.read()
        except (EOFError, grpc.aio.AioRpcError) as error:
            return "RESOURCE_EXHAUSTED" in str(error)
        return False

    assert any(await asyncio.gather(*map(ends, calls)))
    mine = client.policies()
    await mine.ask(HTTP)
    await answered(mine)
    await eventually(lambda: rollout(lab.policies, lab.clients, unlogged).proxies[0].spiffe_id == A)


async def test_of_large_filters_few_are_kept_for_one_workload(lab: Lab, client: WorkloadClient) -> None:
    paths = [f"/{'p' * 60}/{number}" for number in range(2000)]
    await given(lab, policy_set(1, DESCRIBED, allowing("p", paths=paths)))
    beside = ["", "+ask", f"/{A}", f"+ask/{A}"]
    call = client.policies()
    await call.ask(*(HTTP + more for more in beside))
    first = await answered(call)
    assert len(first) == MAX_LARGE
    assert all(len(found.SerializeToString()) > LARGE_BYTES for found in first.values())
    other = client.policies()
    await other.ask(f"{HTTP}+jwt", HTTP)
    found = await answered(other)
    assert found[f"{HTTP}+jwt"] == deny_all()
    assert found[HTTP] == first[HTTP]


async def test_who_does_not_read_holds_up_large_answers_of_its_own_workload_for_a_while(
    lab: Lab, client: WorkloadClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds.policy_ecds.READ_SECONDS", 1.0)
    paths = [f"/{'p' * 1000}/{number}" for number in range(1500)]
    await given(lab, SET)
    call = client.policies()
    await call.ask(HTTP)
    await answered(call)
    stuck = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.policy_crowd", lab.socket, A)
    try:
        await eventually(lambda: [s for s, _ in states(lab).values()] == ["acked", "acked"], seconds=20)
        stuck.send_signal(signal.SIGSTOP)
        await given(lab, policy_set(2, DESCRIBED, allowing("p", paths=paths)))
        assert len((await answered(call))[HTTP].SerializeToString()) > LARGE_BYTES
        await eventually(lambda: len(lab.clients) == 1)
    finally:
        stuck.kill()
        await stuck.wait()


async def test_a_proxy_that_accepts_nothing_new_is_kept_alive_with_what_it_holds(lab: Lab) -> None:
    """A heartbeat names the version that the client holds, and says nothing of what is not acknowledged yet."""
    now = datetime.now(UTC)
    stream = DeltaStream(ttl_seconds=30)
    held = read(SET)

    def answers(why: str) -> PolicyAnswers:
        caller = Caller((A,), frozenset())
        owner = owner_of(HTTP, caller)
        assert owner is not None
        return PolicyAnswers(held, caller, 1, {HTTP: owner}, {HTTP: refusing(owner.resource, why, lasting=True)})

    def said(**fields: Any) -> None:
        stream.take_in(discovery_pb2.DeltaDiscoveryRequest(**fields).SerializeToString(), now)

    def sent(version: str) -> discovery_pb2.DeltaDiscoveryResponse:
        changed = answers("")
        object.__setattr__(changed.found[HTTP], "version", version)
        return discovery_pb2.DeltaDiscoveryResponse.FromString(stream.respond(changed, now) or b"")

    said(resource_names_subscribe=[HTTP], node=base_pb2.Node(id="p"))
    one = sent("one")
    assert one.resources[0].ttl.seconds == 30
    assert stream.heartbeat() is None
    said(response_nonce=one.nonce)
    beat = discovery_pb2.DeltaDiscoveryResponse.FromString(stream.heartbeat() or b"")
    assert [(r.name, r.version, r.ttl.seconds, r.HasField("resource")) for r in beat.resources] == [
        (HTTP, "one", 30, False)
    ]
    two = sent("two")
    assert stream.heartbeat() is None
    said(response_nonce=two.nonce, error_detail=status_pb2.Status(code=13, message="no"))
    beat = discovery_pb2.DeltaDiscoveryResponse.FromString(stream.heartbeat() or b"")
    assert [r.version for r in beat.resources] == ["one"]
    said(resource_names_unsubscribe=[HTTP])
    assert stream.heartbeat() is None
