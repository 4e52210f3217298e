"""The attestor for projected tokens of Kubernetes; a stand-in of the API server can be made to say anything."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from attestor.node.k8s_psat import MAX_PAYLOAD_BYTES, AgentConfig, PsatProver, PsatVerifier, ServerConfig
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from ca.runtime.kube import MAX_AT_ONCE
from ca.runtime.notes import collecting
from tests.contracts.attestors import NodeSample
from tests.support.clock import FakeClock
from tests.support.kube_stand_in import EXTRA, REVIEWS, KubeStandIn
from tests.support.node_host import FakeHost
from tests.support.server import attest, make_csr, running_server

ALLOWED = {"service_account_allow_list": ["spire:agent"]}


@functools.cache
def shared() -> tuple[KubeStandIn, Path]:
    """One for what changes nothing about it: a cluster with one pod, and its token in a file."""
    api = KubeStandIn().start()
    api.node("n1")
    path = api.directory / "token"
    path.write_text(api.token_for(api.pod("spire", "agent-1", node="n1", account="agent")))
    return api, path


def contract_sample() -> NodeSample:
    api, token = shared()
    cluster = {"kube_config_file": str(api.kubeconfig()), **ALLOWED}
    return NodeSample(
        host=FakeHost(),
        server={"clusters": {"demo": cluster}},
        agent={"cluster": "demo", "token_path": str(token)},
    )


@pytest.fixture
def api() -> Iterator[KubeStandIn]:
    """A cluster of one node and one pod of the agent's service account."""
    stand_in = KubeStandIn().start()
    stand_in.node("n1", labels={"zone": "a", "secret": "s"})
    stand_in.pod("spire", "agent-1", node="n1", account="agent", labels={"app": "burgee", "hash": "1"})
    yield stand_in
    stand_in.stop()


POD, NODE = "/api/v1/namespaces/spire/pods/agent-1", "/api/v1/nodes/n1"


def verifier(api: KubeStandIn, **options: Any) -> PsatVerifier:
    cluster = {"kube_config_file": str(api.kubeconfig()), **ALLOWED, **options}
    return PsatVerifier(from_values({"clusters": {"demo": cluster}}, ServerConfig), FakeHost())


def payload(token: str, cluster: str = "demo") -> bytes:
    return json.dumps({"cluster": cluster, "token": token}).encode()


async def no_challenge(_: bytes) -> bytes:
    raise AssertionError("service account tokens have no challenge")


async def verify(api: KubeStandIn, token: str = "", **options: Any) -> AttestedNode:
    token = token or api.token_for(api.objects[POD])
    return await verifier(api, **options).verify(payload(token), no_challenge)


async def refusal(api: KubeStandIn, token: str = "", **options: Any) -> str:
    with pytest.raises(BurgeeError) as caught:
        await verify(api, token, **options)
    assert isinstance(caught.value, Denied | Unavailable)
    return caught.value.reason


async def test_a_pod_is_its_node_with_spires_id_and_selectors(api: KubeStandIn) -> None:
    node = await verify(api, allowed_pod_label_keys=["app", "none"], allowed_node_label_keys=["zone"])
    node_uid, pod_uid = api.objects[NODE]["metadata"]["uid"], api.objects[POD]["metadata"]["uid"]
    assert node.path == f"/spire/agent/k8s_psat/demo/{node_uid}"
    assert node.reattestable
    assert {str(selector) for selector in node.selectors} == {
        "k8s_psat:cluster:demo",
        "k8s_psat:agent_ns:spire",
        "k8s_psat:agent_sa:agent",
        "k8s_psat:agent_pod_name:agent-1",
        f"k8s_psat:agent_pod_uid:{pod_uid}",
        "k8s_psat:agent_pod_label:app:burgee",
        "k8s_psat:agent_node_ip:10.1.2.3",
        "k8s_psat:agent_node_name:n1",
        f"k8s_psat:agent_node_uid:{node_uid}",
        "k8s_psat:agent_node_label:zone:a",
    }


async def test_an_agent_can_be_named_after_its_pod(api: KubeStandIn) -> None:
    node = await verify(api, use_pod_uid_for_agent_id=True)
    assert node.path == f"/spire/agent/k8s_psat/demo/pod/{api.objects[POD]['metadata']['uid']}"


async def test_a_crowd_does_not_wait_for_ever_for_an_api_server_that_is_silent(api: KubeStandIn) -> None:
    """A few are asked for at a time: the others, who may be strangers, wait only for so long."""
    token, done = api.token_for(api.objects[POD]), asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    path = api.kubeconfig()
    port = server.sockets[0].getsockname()[1]
    path.write_text(re.sub(r"https://[^\s\"]*", f"https://127.0.0.1:{port}", path.read_text()))
    cluster = {"kube_config_file": str(path), **ALLOWED, "timeout_seconds": 0.2}
    asked = PsatVerifier(from_values({"clusters": {"demo": cluster}}, ServerConfig), FakeHost())
    crowd = [asked.verify(payload(token), no_challenge) for _ in range(8 * MAX_AT_ONCE)]
    outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    done.set()
    server.close()
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, Unavailable)} == {"K8S_API_UNREACHABLE"}
    assert len({str(outcome.__cause__) for outcome in outcomes if isinstance(outcome, Unavailable)}) == 2


async def test_each_cluster_is_asked_about_its_own_tokens_alone(api: KubeStandIn) -> None:
    other, token = shared()
    clusters = {
        name: {"kube_config_file": str(which.kubeconfig()), **ALLOWED} for name, which in (("a", api), ("b", other))
    }
    both = PsatVerifier(from_values({"clusters": clusters}, ServerConfig), FakeHost())
    theirs = token.read_text()
    assert (await both.verify(payload(theirs, "b"), no_challenge)).path.startswith("/spire/agent/k8s_psat/b/")
    assert not api.reviewed
    with pytest.raises(Denied) as caught:
        await both.verify(payload(theirs, "a"), no_challenge)
    assert caught.value.reason == "K8S_TOKEN_INVALID"


async def test_what_was_compared_is_noted_and_the_token_is_not(api: KubeStandIn) -> None:
    token = api.token_for(api.objects[POD])
    with collecting() as notes:
        await verify(api, token)
        assert await refusal(api, api.token_for(api.objects[POD], "other")) == "K8S_TOKEN_AUDIENCE"
    noted = {note.what: note.value for note in notes}
    assert {"audience", "service account", "pod", "node", "refused"} <= set(noted)
    assert "`['other']`" in noted["audience"]
    assert not any(token[-20:] in note.value for note in notes)


async def test_audiences(api: KubeStandIn) -> None:
    pod = api.objects[POD]
    assert await verify(api, api.token_for(pod, "b"), audience=["a", "b"])
    assert await refusal(api, api.token_for(pod, "spire-server"), audience=["a", "b"]) == "K8S_TOKEN_AUDIENCE"


@pytest.mark.parametrize("audiences", [None, [], ["kube"], "spire-server", [7]])
async def test_an_api_server_must_say_which_audience_it_checked(api: KubeStandIn, audiences: object) -> None:
    """One that knows nothing of audiences vouches for tokens that were made for itself."""
    api.change = {"audiences": audiences}
    assert await refusal(api) == "K8S_TOKEN_AUDIENCE"


async def test_refusals_have_reasons_of_their_own(api: KubeStandIn) -> None:
    pod = api.objects[POD]
    good = api.token_for(pod)
    other = KubeStandIn()
    assert await refusal(api, other.token_for(pod)) == "K8S_TOKEN_INVALID"
    assert await refusal(api, api.token_for(pod, seconds=-10)) == "K8S_TOKEN_EXPIRED"
    assert await refusal(api, service_account_allow_list=["spire:other", "x:agent"]) == "K8S_SERVICE_ACCOUNT"
    api.objects[POD] = pod | {"metadata": pod["metadata"] | {"uid": "another"}}
    assert await refusal(api, good) == "K8S_POD_UID"
    api.objects[POD] = pod | {"metadata": pod["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert await refusal(api, good) == "K8S_POD_DELETED"
    for phase in ("Succeeded", "Failed"):
        api.objects[POD] = pod | {"status": {"phase": phase}}
        assert await refusal(api, good) == "K8S_POD_ENDED"
    api.objects[POD] = pod | {"spec": pod["spec"] | {"serviceAccountName": "other"}}
    assert await refusal(api, good) == "K8S_POD_ACCOUNT"
    api.objects[POD] = pod | {"spec": {"serviceAccountName": "agent"}}
    assert await refusal(api, good) == "K8S_POD_UNBOUND"
    api.objects[POD] = pod | {"spec": pod["spec"] | {"nodeName": "n2"}}
    assert await refusal(api, good) == "K8S_NODE_UNKNOWN"
    api.node("n2")
    assert await refusal(api, good) == "K8S_NODE_MISMATCH"
    api.objects[POD] = pod
    api.node("n1")  # another one of that name
    assert await refusal(api, good) == "K8S_NODE_MISMATCH"
    del api.objects[POD]
    assert await refusal(api, good) == "K8S_POD_DELETED"


def review(api: KubeStandIn, **user: Any) -> None:
    """What the API server says of whoever presents a token."""
    meta = api.objects[POD]["metadata"]
    extra = {f"{EXTRA}pod-name": ["agent-1"], f"{EXTRA}pod-uid": [meta["uid"]]} | user.pop("extra", {})
    said = {"username": "system:serviceaccount:spire:agent", "groups": ["system:serviceaccounts"], "extra": extra}
    api.change = {"user": said | user}


async def test_a_cluster_of_before_1_30_says_no_node(api: KubeStandIn) -> None:
    review(api)
    assert (await verify(api)).path.endswith(api.objects[NODE]["metadata"]["uid"])


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ({"username": "admin"}, "K8S_TOKEN_USER"),
        ({"username": "system:serviceaccount:spire:agent\n"}, "K8S_TOKEN_USER"),
        ({"username": "system:serviceaccount:spire:agent:x"}, "K8S_TOKEN_USER"),
        ({"username": "system:serviceaccount:../x:agent"}, "K8S_TOKEN_USER"),
        ({"username": None}, "K8S_TOKEN_USER"),
        ({"groups": ["system:authenticated"]}, "K8S_TOKEN_USER"),
        ({"extra": {f"{EXTRA}pod-name": None}}, "K8S_TOKEN_UNBOUND"),
        ({"extra": {f"{EXTRA}pod-uid": []}}, "K8S_TOKEN_UNBOUND"),
        ({"extra": {f"{EXTRA}pod-name": ["agent-1", "agent-2"]}}, "K8S_TOKEN_UNBOUND"),
        ({"extra": {f"{EXTRA}node-name": ["n2"]}}, "K8S_NODE_MISMATCH"),
        ({"extra": {f"{EXTRA}node-uid": ["u2"]}}, "K8S_NODE_MISMATCH"),
    ],
)
async def test_only_a_service_account_in_a_pod_is_a_node(api: KubeStandIn, user: Any, reason: str) -> None:
    review(api, **user)
    assert await refusal(api) == reason


@pytest.mark.parametrize("path", [REVIEWS, POD, NODE])
@pytest.mark.parametrize(
    ("status", "reason"), [(401, "K8S_API_DENIED"), (403, "K8S_API_DENIED"), (500, "K8S_API_UNREACHABLE")]
)
async def test_what_the_server_lacks_is_no_fault_of_the_agents(
    api: KubeStandIn, path: str, status: int, reason: str
) -> None:
    """Which permission it is stands in the notes and in the log; the agent is told to come again."""
    api.refuse["POST" if path == REVIEWS else "GET", path] = status
    with collecting() as notes, pytest.raises(Unavailable) as caught:
        await verify(api)
    assert caught.value.reason == reason
    kind = {REVIEWS: "tokenreviews", POD: "pods", NODE: "nodes"}[path]
    assert kind not in caught.value.detail + caught.value.hint
    if status == 403:
        assert kind in notes[-1].value
        assert isinstance(caught.value.__cause__, BurgeeError)


async def test_an_api_server_that_is_away_or_talks_nonsense_is_unavailable(
    api: KubeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in ([], {}, {"status": None}, {"status": []}, {"status": {"authenticated": "true"}}):
        monkeypatch.setattr(api, "answer", lambda *_, answer=answer: (201, answer))
        assert await refusal(api) in ("K8S_API_UNREACHABLE", "K8S_TOKEN_INVALID")
    token, waiting = api.token_for(api.objects[POD]), verifier(api)
    api.stop()
    with pytest.raises(Unavailable) as caught:
        await waiting.verify(payload(token), no_challenge)
    assert caught.value.reason == "K8S_API_UNREACHABLE"


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"7",
        b'"ab"',
        b"[[1, 2], [3, 4]]",
        b'{"cluster": "demo"}',
        b'{"cluster": "demo", "token": 7}',
        b'{"cluster": ["demo"], "token": "a.b.c"}',
        b'{"cluster": "demo", "token": "a.b.c", "cluster": "demo"}',
        b'{"cluster": "demo", "cluster": "demo"}',
        b'{"cluster": "demo", "token": "a.b"}',
        b'{"cluster": "demo", "token": "a.b.c\\n"}',
        b'{"cluster": "demo", "token": "a.b.\\u00e9"}',
        b'{"cluster": "demo", "token": "a.b.c", "more": 1}',
        b'{"cluster": "demo", "token": "' + b"a" * 16_384 + b'.b.c"}',
        b"[" * 17_000,
        b"x" * (MAX_PAYLOAD_BYTES + 1),
    ],
)
async def test_what_is_no_payload_is_not_sent_to_anybody(api: KubeStandIn, data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await verifier(api).verify(data, no_challenge)
    assert caught.value.reason == "ATTESTATION_PAYLOAD"
    assert not api.asked


async def test_a_cluster_that_is_not_configured_is_asked_nothing(api: KubeStandIn) -> None:
    with pytest.raises(Denied) as caught:
        await verifier(api).verify(payload("a.b.c", "prod"), no_challenge)
    assert caught.value.reason == "K8S_CLUSTER_UNKNOWN"


async def test_the_same_token_again_supersedes_the_earlier_svid_and_the_log_says_so() -> None:
    api, token = shared()
    cluster = {"kube_config_file": str(api.kubeconfig()), **ALLOWED}
    async with running_server(node_attestors={"k8s_psat": {"clusters": {"demo": cluster}}}) as server:
        with capture_logs() as logs:
            first, second = [
                await attest(await server.caller(), payload(token.read_text()), make_csr(), "k8s_psat")
                for _ in range(2)
            ]
        assert first.svid.id == second.svid.id
        serials = [
            str(x509.load_der_x509_certificate(done.svid.cert_chain[0]).serial_number) for done in (first, second)
        ]
        told = [(e["serial"], e["by"]) for e in logs if e.get("reason") == "AGENT_SVID_SUPERSEDED"]
        assert told == [tuple(serials)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_flipped_bits_gain_nothing(data: st.DataObject) -> None:
    """The same finding as the true payload's, or a refusal."""
    api, token = shared()
    true = payload(token.read_text())
    flips = data.draw(st.lists(st.integers(0, len(true) * 8 - 1), min_size=1, max_size=3, unique=True))
    changed = bytearray(true)
    for flip in flips:
        changed[flip // 8] ^= 1 << flip % 8
    server = verifier(api)
    try:
        found = await server.verify(bytes(changed), no_challenge)
    except (Denied, InvalidArgument):
        return
    assert found == await server.verify(true, no_challenge)


async def test_a_signature_written_otherwise_is_the_same_signature() -> None:
    """The last character of 64 bytes in base64 has four bits that mean nothing: one of the flips that are let in."""
    api, token = shared()
    true = token.read_text()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same = true[:-1] + alphabet[alphabet.index(true[-1]) ^ 1]
    assert await verify(api, same) == await verify(api, true)


async def test_whether_a_token_has_expired_is_the_api_servers_to_say(api: KubeStandIn) -> None:
    """Our clock explains a refusal and refuses nothing: it may be wrong."""
    fast = FakeHost(clock=FakeClock(datetime(2100, 1, 1, tzinfo=UTC)))
    cluster = {"kube_config_file": str(api.kubeconfig()), **ALLOWED}
    server = PsatVerifier(from_values({"clusters": {"demo": cluster}}, ServerConfig), fast)
    assert await server.verify(payload(api.token_for(api.objects[POD])), no_challenge)


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        {"service_account_allow_list": []},
        {"service_account_allow_list": ["agent"]},
        {"service_account_allow_list": ["a:b:c"]},
        {"service_account_allow_list": ["*:agent"]},
        {**ALLOWED, "audience": []},
        {**ALLOWED, "audience": [""]},
        {**ALLOWED, "timeout_seconds": 0},
    ],
)
def test_a_cluster_says_who_may_attest_and_for_what(cluster: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_values({"clusters": {"demo": cluster}}, ServerConfig)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\n", "é", ".a"])
def test_a_clusters_name_is_a_segment_of_a_spiffe_id(name: str) -> None:
    with pytest.raises(ConfigError):
        from_values({"clusters": {name: ALLOWED}}, ServerConfig)
    with pytest.raises(ConfigError):
        from_values({"cluster": name}, AgentConfig)


def test_a_kubeconfig_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    config = {"clusters": {"demo": {**ALLOWED, "kube_config_file": str(tmp_path / "none")}}}
    with pytest.raises(ConfigError):
        PsatVerifier(from_values(config, ServerConfig), FakeHost())
    with pytest.raises(ConfigError):  # not in a pod
        PsatVerifier(from_values({"clusters": {"demo": ALLOWED}}, ServerConfig), FakeHost())


async def test_the_agent_reads_the_token_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    node = PsatProver(from_values({"cluster": "demo", "token_path": str(path)}, AgentConfig))
    assert node.can_reattest
    for content in (None, "", "junk", "a.b.c\nd", "a.b." + "c" * 20_000, "\xff"):
        if content is not None:
            path.write_text(content, "latin-1")
        with pytest.raises(FailedPrecondition) as caught:
            await node.payload()
        assert caught.value.reason == "K8S_TOKEN_MISSING"
    for token in ("a.b.c", "d.e.f"):
        path.write_text(f"{token}\n")
        assert json.loads(await node.payload()) == {"cluster": "demo", "token": token}
    with pytest.raises(FailedPrecondition):
        await node.answer(b"?")
