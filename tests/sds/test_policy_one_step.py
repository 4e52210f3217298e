"""A revision that changes whose tokens are believed and what their claims may do is one step, in a real Envoy and under
load: no request meets the issuers of one and the rules of the other."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication

from policy.decision_record import DecisionRecord
from policy.envoy import Proxy
from sds.policy_filters import Made, make
from tests.policy.test_envoy_snippet import Issuer
from tests.support.pair import until
from tests.support.policy_envoy import read_answer
from tests.support.policy_node import Object, PolicyNode, allowing, authorization, entry_for, policy_node, workload
from tests.support.policy_proxy import CALLER, PolicyProxy

pytestmark = [pytest.mark.xdist_group("policy-push"), pytest.mark.real("envoy")]

WEB = workload("web", "/web")
REVISIONS = ("a", "b")
FLIPS = 30


def issuers(*rules: dict[str, Any]) -> Object:
    """A RequestAuthentication."""
    head = {"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication"}
    return {**head, "metadata": {"name": "j", "namespace": "a"}, "spec": {"jwtRules": list(rules)}}


def revision(name: str, *, asked: bool = False) -> tuple[Object, ...]:
    """`x-a` is where revision a reads tokens, and role `a` is whom it lets in. `asked`: by a rule that a proxy cannot
    decide by itself."""
    rule = {"issuer": "https://i", "fromHeaders": [{"name": f"x-{name}"}]}
    role: dict[str, Any] = {"when": [{"key": "request.auth.claims[role]", "values": [name]}]}
    if asked:
        role = {"burgee": {"condition": f'has(request.auth.claims.role) && request.auth.claims.role == "{name}"'}}
    return WEB, issuers(rule), authorization("p", rules=[role])


def requests(issuer: Issuer) -> dict[str, dict[str, str]]:
    """Headers of requests that both revisions allow, that neither does, and that one of them does."""
    token = {role: issuer.token(iss="https://i", sub="s", exp=int(time.time()) + 900, role=role) for role in REVISIONS}
    return {
        "both": {"x-a": token["a"], "x-b": token["b"]},
        "neither": {"x-a": token["b"], "x-b": token["a"]},
        "a": {"x-a": token["a"]},
        "b": {"x-b": token["b"]},
    }


@contextmanager
def load(web: PolicyProxy, asked: dict[str, dict[str, str]], threads: int = 2) -> Iterator[dict[str, list[int]]]:
    """Requests in turn, as fast as they are answered; the statuses that were seen."""
    seen: dict[str, list[int]] = {name: [] for name in asked}
    over = threading.Event()
    sent = {
        name: "".join(["GET / HTTP/1.1\r\nhost: x\r\n", *(f"{k}: {v}\r\n" for k, v in headers.items()), "\r\n"])
        for name, headers in asked.items()
    }

    def ask() -> None:
        with web.connect(CALLER) as stream, stream.makefile("rb") as reader:
            while not over.is_set():
                for name, text in sent.items():
                    stream.sendall(text.encode())
                    answer = read_answer(reader)
                    assert answer is not None
                    seen[name].append(answer.status)

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for one in running:
        one.start()
    try:
        yield seen
    finally:
        over.set()
        for one in running:
            one.join(10)


class Patient(PolicyProxy):
    """Other tests may hold up the one who is asked."""

    def _bootstrap(self) -> dict[str, Any]:
        found = super()._bootstrap()
        for listener in found["static_resources"]["listeners"]:
            for one in listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]:
                if one["name"] == "burgee.http.ask":
                    one["typed_config"]["grpc_service"]["timeout"] = "20s"
        return found


def slowly(*args: Any, **more: Any) -> Made:
    """Filters of thousands of rules take so long to make; meanwhile the agent has another revision than the proxy."""
    time.sleep(0.05)
    return make(*args, **more)


@pytest.mark.parametrize("api", ["DELTA_GRPC", "GRPC"])
@pytest.mark.parametrize("asked", [False, True], ids=["pushed", "asked"])
def test_no_request_meets_the_issuers_of_one_revision_and_the_rules_of_another(
    api: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds.policy_filters.make", slowly)
    issuer = Issuer()
    headers = requests(issuer)
    with policy_node() as node:
        web = Patient("web", node.home / "web", node.socket, beside=Proxy(ext_authz=asked, jwt=True), api=api)
        node.start(entry_for("/web", web.envoy.selector))

        def write(number: int) -> int:
            found = revision(REVISIONS[number % 2], asked=asked)
            return node.write(*found, keys={"https://i": issuer.jwks})

        def acked(number: int) -> bool:
            return node.acked(number)

        try:
            web.start()
            write(0)
            until("it is let in", lambda: web.status(**headers["a"]) == 200)
            with load(web, headers) as seen:
                for number in range(1, FLIPS + 1):
                    until("it has acknowledged", partial(acked, write(number)), every=0.005)
        finally:
            web.stop()
    check_steps(seen)


def check_steps(seen: dict[str, list[int]]) -> None:
    print({name: len(found) for name, found in seen.items()})
    statuses = {name: {*found} for name, found in seen.items()}
    assert statuses == {"both": {200}, "neither": {403}, "a": {200, 403}, "b": {200, 403}}


@pytest.fixture
def web() -> Iterator[Web]:
    with policy_node() as node:
        found = Web(node)
        try:
            yield found
        finally:
            found.proxy.stop()


class Web:
    """A node and a proxy on it that is sent chains, and has revision a."""

    def __init__(self, node: PolicyNode) -> None:
        self.node, self.issuer = node, Issuer()
        self.headers = requests(self.issuer)
        self.proxy = PolicyProxy("web", node.home / "web", node.socket, beside=Proxy(jwt=True))
        node.start(entry_for("/web", self.proxy.envoy.selector))
        self.proxy.start()
        self.write("a")
        until("it is let in", lambda: self.allowed() == {"a", "both"})

    def write(self, name: str, *more: Object) -> int:
        return self.node.write(*revision(name), *more, keys={"https://i": self.issuer.jwks})

    def logged(self) -> int | None:
        """The revision by which the log says that a request was decided."""
        agent, path = self.node.agent, f"/{secrets.token_hex(8)}"
        assert agent is not None
        records: list[DecisionRecord] = []
        agent.decisions.log.watchers.append(records.append)
        self.proxy.status(path, **self.headers["both"])
        until("it is logged", lambda: any(record.path == path for record in records))
        return next(record.revision for record in records if record.path == path)

    def allowed(self) -> set[str]:
        """The requests that are allowed now."""
        return {name for name, headers in self.headers.items() if self.proxy.status(**headers) == 200}


def test_agents_that_end_between_two_revisions_leave_one_of_them(web: Web) -> None:
    with load(web.proxy, web.headers) as seen:
        for name in ("b", "a", "b"):
            web.write(name)
            web.node.stop_agent()
            time.sleep(0.3)
            web.node.start_agent()
            until("it has acknowledged", lambda: web.node.acked(web.node.revision), seconds=30)
            assert web.node.proxies
    check_steps(seen)
    assert web.allowed() == {"b", "both"}


def test_what_an_envoy_will_not_have_of_either_leaves_it_both_as_they_were(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = JwtAuthentication()
    wrong.rules.add().requires.provider_name = "nobody"
    monkeypatch.setattr("sds.policy_filters.tokens_of", lambda *_: wrong)
    web.write("b")
    until("it is rejected", lambda: [s.state for s in web.node.proxies] == ["nacked"])
    (state,) = web.node.proxies
    assert (state.resource, state.revision) == ("burgee.http.policy+jwt", 2)
    assert "nobody" in state.detail
    assert web.allowed() == {"a", "both"}
    assert web.logged() == 1
    monkeypatch.undo()
    web.write("b", allowing("more", paths=["/more"]))
    until("what comes later holds", lambda: web.allowed() == {"b", "both"})
    until("the log names it", lambda: web.logged() == 3)


def test_who_loses_its_identity_loses_both_and_has_both_with_it_again(web: Web) -> None:
    node = web.node
    entry = entry_for("/web", web.proxy.envoy.selector)
    node.do(node.server.push(removed=(entry.id,)))
    until("nobody is let in", lambda: not web.allowed())
    node.do(node.server.push(upsert=(entry,)))
    until("it is as before", lambda: web.allowed() == {"a", "both"})
