"""The filter for connections in a real Envoy: who may connect, and what is left of policies that are about HTTP."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from policy import reference
from policy.envoy import Proxy, network_filter
from policy.envoy_snippet import any_of, ask_network_filter
from policy.model import Action, Attribute, Mesh, Policy, Request, Rule
from tests.policy.test_envoy import MESH, TARGET, clause, policy
from tests.support.envoys import Envoy
from tests.support.policy_authz import Authz
from tests.support.policy_certificates import Authority
from tests.support.policy_envoy import extension, grpc_cluster, server_tls

pytestmark = [pytest.mark.xdist_group("policy-envoy"), pytest.mark.real("envoy")]

WEB, BAD = "td/ns/a/sa/web", "td/ns/a/sa/bad"
FROM_WEB = Rule(sources=((clause(Attribute.SOURCE_PRINCIPAL, WEB),),))
FROM_BAD = Rule(
    sources=((clause(Attribute.SOURCE_PRINCIPAL, BAD),),), operations=((clause(Attribute.METHOD, "POST"),),)
)
SETS: dict[str, tuple[Policy, ...]] = {
    "principals": (policy(FROM_WEB),),
    "allow-with-http-is-dropped": (
        policy(Rule(sources=FROM_WEB.sources, operations=((clause(Attribute.PATH, "/x"),),))),
    ),
    "deny-with-http-denies-more": (policy(Rule()), policy(FROM_BAD, action=Action.DENY, name="d")),
    "ports": (policy(Rule(operations=((clause(Attribute.DESTINATION_PORT, "1"),),))),),
    "asked": (policy(FROM_WEB), policy(FROM_WEB, action=Action.CUSTOM, name="c", provider="opa")),
    "shadow": (policy(FROM_WEB), policy(FROM_WEB, action=Action.DENY, name="d", shadow=True)),
    "nothing": (),
}
CALLERS: list[tuple[str, ...] | None] = [
    (f"spiffe://{WEB}",),
    (f"spiffe://{BAD}",),
    (f"spiffe://{WEB}", f"spiffe://{BAD}"),
    None,
]


class Echo(threading.Thread):
    """Answers each connection with what it was sent."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(connection.recv(16) or b"")


class Lab:
    """One listener for each set of policies."""

    def __init__(self, directory: Path, proxy: Proxy) -> None:
        self.authority, self.echo = Authority(directory), Echo()
        self.please = True
        self.authz = Authz(directory / "authz.sock", lambda check: self.please)
        self.envoy = Envoy("tcp", directory / "envoy")
        upstream = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": self.echo.port}}}}
        echo = {
            "name": "echo",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "echo", "endpoints": [{"lb_endpoints": [upstream]}]},
        }
        self.envoy.start(
            {
                "node": {"id": "tcp", "cluster": "tcp"},
                "admin": {"address": {"pipe": {"path": str(self.envoy.admin_socket), "mode": 0o600}}},
                "static_resources": {
                    "listeners": [
                        *(self._listener(name, found, proxy) for name, found in SETS.items()),
                        self._listener("unanswered", SETS["asked"], proxy, ask="nobody"),
                    ],
                    "clusters": [
                        echo,
                        grpc_cluster("ask", directory / "authz.sock"),
                        grpc_cluster("nobody", directory / "nobody.sock"),
                    ],
                },
            }
        )

    def _listener(self, name: str, policies: Sequence[Policy], proxy: Proxy, ask: str = "ask") -> dict[str, Any]:
        made, _ = network_filter(TARGET, policies, MESH, proxy)
        filters = [
            {"name": "policy", "typed_config": MessageToDict(any_of(made))},
            {"name": "ask", "typed_config": MessageToDict(ask_network_filter(ask, milliseconds=20_000))},
            extension("tcp", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=name, cluster="echo"),
        ]
        return {
            "name": name,
            "stat_prefix": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": filters, "transport_socket": server_tls(self.authority)}],
        }

    def connects(self, name: str, uris: tuple[str, ...] | None) -> bool:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if uris is not None:
            pair = self.authority.issue(*uris)
            context.load_cert_chain(pair.certificate, pair.key)
        plain = socket.create_connection(("127.0.0.1", self.envoy.port(name)), 20)
        try:
            with context.wrap_socket(plain) as stream:
                stream.sendall(b"hello")
                return stream.recv(16) == b"hello"
        except OSError:
            return False

    def stop(self) -> None:
        self.envoy.stop()
        self.authz.stop()
        self.echo.listener.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(tmp_path_factory.mktemp("tcp"), Proxy(ext_authz=True))
    try:
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize("name", SETS)
def test_connections_are_decided_as_the_specification_says(lab: Lab, name: str) -> None:
    for uris in CALLERS:
        alone = uris[0].removeprefix("spiffe://") if uris and len(uris) == 1 else None
        request = Request(principal=alone, destination_port=2, http=False)
        must = reference.decide(SETS[name], MESH, TARGET, request).allowed and (uris is None or len(uris) == 1)
        assert (lab.connects(name, uris), uris) == (must, uris)


def test_only_marked_connections_are_asked_about(lab: Lab) -> None:
    lab.authz.checks.clear()
    assert lab.connects("principals", CALLERS[0])
    assert lab.authz.checks == []
    lab.please = False
    assert not lab.connects("asked", CALLERS[0])
    lab.please = True
    assert lab.connects("asked", CALLERS[0])
    assert [check.attributes.source.principal for check in lab.authz.checks] == [f"spiffe://{WEB}"] * 2


def test_nobody_to_ask_is_a_refusal(lab: Lab) -> None:
    assert lab.connects("asked", CALLERS[0])
    assert not lab.connects("unanswered", CALLERS[0])


def test_shadow_policies_are_counted(lab: Lab) -> None:
    before = lab.envoy.stats("shadow_denied")
    assert lab.connects("shadow", CALLERS[0])
    assert sum(lab.envoy.stats("shadow_denied").values()) == sum(before.values()) + 1


def test_a_proxy_that_cannot_ask_lets_nobody_through() -> None:
    made, unsaid = network_filter(TARGET, SETS["asked"], MESH, Proxy())
    assert [(u.policy, u.rule) for u in unsaid] == [("a/c", 0)]
    assert b"burgee/cannot-ask" in made.SerializeToString()
    assert b"burgee/ask" not in made.SerializeToString()


def test_an_open_namespace_is_open_for_connections() -> None:
    made, _ = network_filter(TARGET, [], Mesh(trust_domains=("td",), open_namespaces=frozenset({"a"})), Proxy())
    assert made.matcher.on_no_match.action.name == "burgee/open-namespace"
