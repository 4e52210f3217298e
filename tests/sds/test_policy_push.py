"""Policies from a write to a real Envoy's decisions: to each proxy those of its own workload, and nothing before."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest

from ca.cli import explain_pages, explain_values
from ca.identity.bundle import TrustBundle
from ca.proto.burgee import agent_pb2, agent_pb2_grpc
from policy.envoy import Config, Proxy
from policy.envoy_jwt import jwt_filter
from policy.envoy_snippet import any_of
from tests.policy.test_envoy_snippet import Issuer
from tests.sds.lab import Authority
from tests.support.pair import until
from tests.support.policy_envoy import read_answer
from tests.support.policy_node import PolicyNode, allowing, authorization, entry_for, policy_node, workload
from tests.support.policy_proxy import PolicyProxy

pytestmark = [pytest.mark.xdist_group("policy-push"), pytest.mark.real("envoy")]

WEB = workload("web", "/web")
API = workload("api", "/api", namespace="b")


class World:
    """A node and the proxies on it."""

    def __init__(self, node: PolicyNode) -> None:
        self.node = node
        self.proxies: dict[str, PolicyProxy] = {}

    def proxy(self, name: str, **more: Any) -> PolicyProxy:
        made = PolicyProxy(name, self.node.home / name, self.node.socket, **more)
        self.proxies[name] = made
        return made


@pytest.fixture
def world() -> Iterator[World]:
    with policy_node() as node, ExitStack() as stack:
        made = World(node)
        stack.callback(lambda: [proxy.stop() for proxy in made.proxies.values()])
        yield made


def test_nothing_is_let_in_until_policies_come_and_then_what_they_say(world: World) -> None:
    web = world.proxy("web")
    world.node.start(entry_for("/web", web.envoy.selector))
    web.start()
    assert web.status("/x") == 403
    assert [(s.state, s.detail) for s in until("it has asked", lambda: world.node.proxies)] == [
        ("unanswered", "the server has sent this agent no policies")
    ]
    before = time.monotonic()
    world.node.write(WEB, allowing("p", paths=["/x"]))
    until("it is let in", lambda: web.status("/x") == 200)
    assert time.monotonic() - before < 5
    assert web.status("/y") == 403
    until("it has acknowledged", lambda: world.node.acked(1))
    state = world.node.proxies[0]
    assert (state.proxy, state.spiffe_id, state.resource) == ("web", "spiffe://example.org/web", "burgee.http.policy")
    assert state.pid == web.envoy.process.pid
    ack = until("the server is told", lambda: a if (a := world.node.last_ack) and a.proxies[0].state == "acked" else 0)
    assert (ack.revision, ack.error) == (1, "")
    until("it is told of the log", lambda: (a := world.node.last_ack) and not a.proxies[0].unlogged)
    assert web.envoy.process is not None
    with grpc.insecure_channel(f"unix:{world.node.home}/a/a.sock") as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        answer = stub.ExplainWorkload(agent_pb2.ExplainWorkloadRequest(pid=web.envoy.process.pid), timeout=10)
        status = stub.GetStatus(agent_pb2.GetStatusRequest(), timeout=10)
        (client,) = stub.ListSdsClients(agent_pb2.ListSdsClientsRequest(), timeout=10).clients
    explained = explain_values.workload_value(answer)
    (matched,) = explained["policies"]
    assert (matched["namespace"], matched["policies"], matched["revision"]) == ("a", ["a/p"], 1)
    page = explain_pages.workload_page(explained)
    assert "for spiffe://example.org/web (namespace a), revision 1" in page
    assert (status.policy_revision, status.policy_detail) == (1, "")
    assert [(r.name, r.state) for r in client.resources] == [("burgee.http.policy", "ACKED")]


def test_each_proxy_has_the_policies_of_its_own_workload_and_of_no_other(world: World) -> None:
    web, api, thief = world.proxy("web"), world.proxy("api"), world.proxy("thief", spiffe_id="spiffe://example.org/web")
    entries = [entry_for(f"/{p.name}", p.envoy.selector) for p in (web, api, thief)]
    world.node.start(*entries)
    for proxy in (web, api, thief):
        proxy.start()
    everywhere = allowing("everywhere", "root", paths=["/all"])
    world.node.write(WEB, API, allowing("w", paths=["/w"]), allowing("a", "b", paths=["/a"]), everywhere)
    until("web is let in", lambda: web.status("/w") == 200)
    until("api is let in", lambda: api.status("/a") == 200)
    assert [web.status(p) for p in ("/w", "/a", "/all")] == [200, 403, 200]
    assert [api.status(p) for p in ("/w", "/a", "/all")] == [403, 200, 200]
    assert [thief.status(p) for p in ("/w", "/a", "/all")] == [403, 403, 403]
    (state,) = [s for s in world.node.proxies if s.proxy == "thief"]
    assert (state.spiffe_id, state.state) == ("", "acked")
    assert state.detail == (
        "everything is refused: no registration entry gives this workload `spiffe://example.org/web`"
    )
    world.node.do(world.node.server.push(upsert=(entry_for("/second", web.envoy.selector),)))
    until("nobody knows whose policies are meant", lambda: web.status("/w") == 403)
    until("it says so", lambda: any("has 2 identities" in s.detail for s in world.node.proxies if s.proxy == "web"))
    assert api.status("/a") == 200
    world.node.do(world.node.server.push(removed=("second",)))
    until("web is let in again", lambda: web.status("/w") == 200)
    world.node.do(world.node.server.push(removed=("web",)))
    until("who has no identity has no policies", lambda: web.status("/w") == 403)


def test_the_last_good_policies_outlive_the_server_and_the_agent(world: World) -> None:
    web = world.proxy("web")
    world.node.start(entry_for("/web", web.envoy.selector))
    web.start()
    world.node.write(WEB, allowing("p", paths=["/x"]))
    until("it is let in", lambda: web.status("/x") == 200)
    world.node.write(WEB, authorization("p", action="NONSENSE"))
    ack = until("the server is told why", lambda: a if (a := world.node.last_ack) and a.error else None)
    assert ack.revision == 1
    assert "there is no action `NONSENSE`" in ack.error
    assert web.status("/x") == 200
    world.node.do(world.node.server.stop())
    assert web.status("/x") == 200
    world.node.stop_agent()
    assert web.status("/x") == 200
    world.node.start_agent()
    web.stop()
    web.start()
    until("an Envoy that starts anew is given them", lambda: web.status("/x") == 200)
    assert web.status("/y") == 403
    until("both know it", lambda: world.node.acked(1))
    world.node.revision += 1
    world.node.server.policies = None
    world.node.do(world.node.server.start())
    world.node.write(WEB, allowing("p", paths=["/y"]))
    until("what comes later holds", lambda: web.status("/y") == 200, seconds=30)
    world.node.do(world.node.server.push_policies(None))
    until("what is taken away lets nobody in", lambda: web.status("/y") == 403)


def test_an_older_server_that_knows_of_no_policies_is_told_nothing_of_them(world: World) -> None:
    node = world.node
    node.start(entry_for("/web", "unix:uid:0"))
    node.write(WEB, allowing("p"))
    until("the server is told", lambda: node.last_ack)
    node.do(node.server.stop())
    node.server.policies, node.server.unknown_kinds = None, {"policy"}
    node.server.calls.clear()
    node.do(node.server.start())
    until("it came again", lambda: "Sync" in node.server.calls, seconds=30)
    node.do(node.server.push(upsert=(entry_for("/first", "unix:uid:0"),)))
    until("it was refused, and came again", lambda: node.server.calls.count("Sync") >= 2, seconds=30)
    agent = node.agent
    assert agent is not None
    until("it is in step", lambda: node.ask(lambda: agent.client.connected))
    node.do(node.server.push(upsert=(entry_for("/api", "unix:uid:0"),)))
    until("what comes is taken", lambda: node.ask(lambda: len(agent.cache.entries())) == 3)
    assert node.server.calls.count("Sync") == 2
    assert node.ask(lambda: agent.policies.revision) == 1


def test_no_request_is_refused_that_two_revisions_allow_nor_allowed_that_both_refuse(world: World) -> None:
    web = world.proxy("web")
    world.node.start(entry_for("/web", web.envoy.selector))
    web.start()
    revisions = [
        (WEB, allowing("one", paths=["/both", "/one"]), authorization("deny", action="DENY", rules=[_path("/never")])),
        (WEB, allowing("two"), authorization("other", action="DENY", rules=[_path("/one", "/never")])),
    ]
    world.node.write(*revisions[0])
    until("it is let in", lambda: web.status("/both") == 200)
    seen: dict[str, set[int]] = {"/both": set(), "/never": set(), "/one": set()}
    over = threading.Event()

    def load() -> None:
        with web.connect(("spiffe://example.org/caller",)) as stream, stream.makefile("rb") as reader:
            while not over.is_set():
                for path, statuses in seen.items():
                    stream.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                    answer = read_answer(reader)
                    assert answer is not None
                    statuses.add(answer.status)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        slowest = 0.0
        for number in range(1, 41):
            begin = time.monotonic()
            revision = world.node.write(*revisions[number % 2])
            until("it has acknowledged", lambda r=revision: world.node.acked(r), every=0.005)
            slowest = max(slowest, time.monotonic() - begin)
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
    assert seen == {"/both": {200}, "/never": {403}, "/one": {200, 403}}
    assert slowest < 5


def _path(*paths: str) -> dict[str, Any]:
    return {"to": [{"operation": {"paths": list(paths)}}]}


def test_what_an_envoy_will_not_have_is_told_in_its_words_and_the_old_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = world.proxy("web")
    world.node.start(entry_for("/web", web.envoy.selector))
    web.start()
    world.node.write(WEB, allowing("p", paths=["/x"]))
    until("it is let in", lambda: web.status("/x") == 200)
    wrong = Config(message=any_of(jwt_filter((), {})), unsaid=(), shares=())
    monkeypatch.setattr("sds.policy_filters.http_config", lambda *_: wrong)
    world.node.write(WEB, allowing("p", paths=["/y"]))
    state = until("it is rejected", lambda: next((s for s in world.node.proxies if s.state == "nacked"), None))
    assert "JwtAuthentication" in state.detail
    assert (state.revision, state.in_force) == (2, 1)
    ack = until("the server is told", lambda: a if (a := world.node.last_ack) and a.proxies[0].detail else None)
    assert (ack.proxies[0].detail, ack.proxies[0].in_force) == (state.detail, 1)
    assert (web.status("/x"), web.status("/y")) == (200, 403)
    monkeypatch.undo()
    world.node.write(WEB, allowing("p", paths=["/y", "/z"]))
    until("the next one holds", lambda: web.status("/y") == 200)


def test_a_rule_on_tokens_is_pushed_with_the_filter_that_verifies_them(world: World) -> None:
    web = world.proxy("web", beside=Proxy(jwt=True))
    bare = world.proxy("bare")
    world.node.start(*(entry_for("/web", p.envoy.selector, p.name) for p in (web, bare)))
    issuer = Issuer()
    web.start()
    bare.start()
    verified = {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "j", "namespace": "a"},
        "spec": {"jwtRules": [{"issuer": "https://i"}]},
    }
    admins = {"when": [{"key": "request.auth.claims[role]", "values": ["admin"]}]}
    world.node.write(WEB, verified, authorization("t", rules=[admins]), keys={"https://i": issuer.jwks})
    token = {
        role: issuer.token(iss="https://i", sub="s", exp=int(time.time()) + 60, role=role) for role in ("admin", "x")
    }
    asked = lambda proxy, role: proxy.status("/", authorization=f"Bearer {token[role]}")  # noqa: E731
    until("an admin is let in", lambda: asked(web, "admin") == 200)
    assert (asked(web, "x"), web.status("/"), web.status("/", authorization="Bearer a.b.c")) == (403, 403, 401)
    until("both have acknowledged", lambda: world.node.acked(1, streams=2))
    assert asked(bare, "admin") == 403
    notes = {s.proxy: s.detail for s in world.node.proxies if s.resource.startswith("burgee.http.policy")}
    assert notes["web"] == ""
    assert notes["bare"].startswith("refused: what only 1 rule")


def test_jwt_svids_count_by_the_keys_of_the_trust_bundle(world: World) -> None:
    web = world.proxy("web", beside=Proxy(jwt=True))
    one, two = Authority(), Authority()
    server = world.node.server

    def trusting(authority: Authority, number: int) -> TrustBundle:
        authorities = authority.bundle().jwt_authorities
        return replace(server.trust_bundle, jwt_authorities=authorities, sequence_number=number)

    def asked(authority: Authority) -> int:
        claims = {"sub": "spiffe://example.org/x", "aud": ["spiffe://example.org/web"], "exp": int(time.time()) + 60}
        return web.status("/", authorization=f"Bearer {authority.token(claims)}")

    server.bundle = trusting(one, 2)
    world.node.start(entry_for("/web", web.envoy.selector))
    web.start()
    subject = {"when": [{"key": "request.auth.claims[sub]", "values": ["spiffe://example.org/x"]}]}
    world.node.write(WEB, authorization("s", rules=[subject]))
    until("a JWT-SVID is believed", lambda: asked(one) == 200)
    assert asked(two) == 403
    server.bundle = trusting(two, 3)
    world.node.do(server.push_bundle())
    until("a new key is believed", lambda: asked(two) == 200)
    assert asked(one) == 403


def test_strict_mutual_tls_reaches_the_proxy(world: World) -> None:
    web = world.proxy("web")
    world.node.start(entry_for("/web", web.envoy.selector))
    web.start()

    def written(mode: str) -> int:
        head = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"}
        strict = {**head, "metadata": {"name": "all", "namespace": "root"}, "spec": {"mtls": {"mode": mode}}}
        return world.node.write(WEB, allowing("p"), strict)

    for mode, status in (("PERMISSIVE", 200), ("STRICT", 403), ("PERMISSIVE", 200)):
        revision = written(mode)
        until("it has acknowledged", lambda r=revision: world.node.acked(r))
        assert (web.status(uris=None), web.status()) == (status, 200)


def test_an_open_connection_goes_on_to_its_end_and_a_new_one_meets_the_new_policies(world: World) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_echo, args=(listener,), daemon=True).start()
    web = world.proxy("web", upstream=listener.getsockname()[1], connection_seconds=4)
    world.node.start(entry_for("/web", web.envoy.selector))
    try:
        web.start()
        world.node.write(WEB, allowing("p"))
        until("it is let in", lambda: _echoed(web))
        with web.connect_tcp() as connection:
            connection.sendall(b"before")
            assert connection.recv(100) == b"before"
            world.node.write(WEB, authorization("p", action="DENY", rules=[{}]))
            until("new ones are refused", lambda: not _echoed(web))
            connection.sendall(b"after")
            assert connection.recv(100) == b"after"
            connection.settimeout(20)
            assert connection.recv(100) == b""  # it has come to its end
    finally:
        listener.close()


def _echoed(proxy: PolicyProxy) -> bool:
    try:
        with proxy.connect_tcp() as connection:
            connection.settimeout(5)
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
    except OSError:
        return False


def _echo(listener: socket.socket) -> None:
    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1000):
                connection.sendall(data)

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


@pytest.mark.parametrize(
    ("api", "beside"), [("DELTA_GRPC", Proxy(jwt=True)), ("GRPC", Proxy())], ids=["chain, incremental", "filter, whole"]
)
def test_a_proxy_cut_off_from_the_agent_denies_where_that_is_configured(api: str, beside: Proxy) -> None:
    with policy_node(policy={"cut_off": "deny", "ttl_seconds": 3}) as node:
        web = PolicyProxy("web", node.home / "web", node.socket, api=api, beside=beside)
        node.start(entry_for("/web", web.envoy.selector))
        try:
            web.start()
            node.write(WEB, allowing("p", paths=["/x"]))
            until("it is let in", lambda: web.status("/x") == 200)
            calm = time.monotonic() + 5
            while time.monotonic() < calm:  # heartbeats keep it
                assert web.status("/x") == 200
                time.sleep(0.1)
            node.stop_agent()
            assert web.status("/x") == 200
            until("nothing is let in", lambda: web.status("/x") == 403, seconds=15)
            node.start_agent()
            until("it is let in again", lambda: web.status("/x") == 200, seconds=30)
        finally:
            web.stop()


def test_state_of_the_world_does_as_well(world: World) -> None:
    web = world.proxy("web", api="GRPC")
    world.node.start(entry_for("/web", web.envoy.selector))
    web.start()
    world.node.write(WEB, allowing("p", paths=["/x"]))
    until("it is let in", lambda: web.status("/x") == 200)
    world.node.write(WEB, allowing("p", paths=["/y"]))
    until("the next one holds", lambda: web.status("/y") == 200)
    assert web.status("/x") == 403
    world.node.do(world.node.server.push(removed=("web",)))
    until("who has no identity has no policies", lambda: web.status("/y") == 403)
