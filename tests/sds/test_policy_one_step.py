"""A revision that changes whose tokens are believed and what their claims may do is one step, in a real Envoy and under
load: no request meets the issuers of one and the rules of the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from policy.envoy import Proxy
from sds.policy_filters import Made, make
from tests.policy.test_envoy_snippet import Issuer
from tests.support.pair import until
from tests.support.policy_envoy import read_answer
from tests.support.policy_node import Object, authorization, entry_for, policy_node, workload
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
    statuses = {name: {*found} for name, found in seen.items()}
    print({name: len(found) for name, found in seen.items()})
    assert statuses == {"both": {200}, "neither": {403}, "a": {200, 403}, "b": {200, 403}}
