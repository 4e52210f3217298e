"""A real Envoy asks our agent and sends it its log: one id everywhere, and refused whenever nobody answers in time."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict

from policy.decision_record import DecisionRecord, Source
from policy.envoy import Proxy, http_filter, network_filter
from policy.envoy_snippet import any_of, ask_filter, ask_network_filter, http_snippet, network_snippet
from policy.model import Mesh, Target
from policy.parse import parse_object
from tests.sds.lab import WEB, entry, eventually
from tests.sds.policy_lab import PolicyLab, policy, workload
from tests.support.envoys import Envoy
from tests.support.jwt_issuer import JwtIssuer
from tests.support.pair import until
from tests.support.policy_certificates import Authority
from tests.support.policy_envoy import extension, server_tls

pytestmark = [pytest.mark.xdist_group("policy-envoy"), pytest.mark.real("envoy"), pytest.mark.timeout(120)]

TARGET_ID = "spiffe://example.org/t"
TARGET = Target(spiffe_id=TARGET_ID, namespace="a")
MESH = Mesh(trust_domains=("example.org",), root_namespace="istio-system")
WEB_ID, OTHER_ID = "spiffe://example.org/web", "spiffe://example.org/other"
HCM = "filters.network.http_connection_manager.v3.HttpConnectionManager"

FROM_WEB = {"from": [{"source": {"principals": ["example.org/web"]}}]}
ISSUER = JwtIssuer()
ALICE = 'request.path == "/token" && has(request.auth.claims.sub) && request.auth.claims.sub == "alice"'
OBJECTS = [
    policy("named", "ALLOW", {**FROM_WEB, "to": [{"operation": {"paths": ["/pushed"]}}]}),
    policy("cel", "ALLOW", {**FROM_WEB, "burgee": {"condition": 'request.headers["x-tenant"] == "blue"'}}),
    policy("token", "ALLOW", {**FROM_WEB, "burgee": {"condition": ALICE}}),
    {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"namespace": "a", "name": "tokens"},
        "spec": {"jwtRules": [{"issuer": "https://i", "jwks": ISSUER.jwks}]},
    },
    policy("never", "DENY", {"to": [{"operation": {"paths": ["/never"]}}]}),
]
TCP_OBJECTS = [policy("named", "ALLOW", FROM_WEB)]


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def decision(self) -> list[str]:
        return [value for name, value in self.headers if name == "x-burgee-decision"]

    @property
    def request_id(self) -> str:
        return dict(self.headers).get("x-request-id", "")


class Proxied:
    """Listeners: `snippet` is what a person copies; `pushed` has our tree and asks what it cannot say, `asks` asks
    everything, `bare` leaves the certificate out, `tcp` and `tcp-asks` are the same for connections."""

    def __init__(self, directory: Path, agent: Path) -> None:
        self.directory, self.agent = directory, agent
        self.envoy = Envoy("authz", directory / "envoy")
        self.authority = Authority(directory)
        self.own_log = directory / "access.log"

    def start(self) -> None:
        snippet = http_snippet(Proxy(ext_authz=True), "agent", str(self.agent), prefix="p1")
        tcp = network_snippet(Proxy(ext_authz=True), "agent", str(self.agent), prefix="p1")
        manager = snippet["http_connection_manager"]
        whole = http_snippet(
            Proxy(ext_authz=True, jwt=True), "agent", str(self.agent), prefix="p2", spiffe_id=TARGET_ID
        )
        copied = whole["http_connection_manager"]
        asks = ask_filter("agent", milliseconds=20_000, prefix="p1")
        every = ask_filter("agent", milliseconds=20_000, prefix="p1", marked=False)
        bare = ask_filter("agent", milliseconds=20_000, marked=False)
        late = ask_filter("late", milliseconds=100, prefix="p1", marked=False)
        tcp_every = ask_network_filter("agent", milliseconds=20_000, prefix="p1", marked=False)
        found = [o for item in OBJECTS for o in parse_object(item, "test").policies]
        tree, unsaid = http_filter(TARGET, found, MESH, Proxy(ext_authz=True))
        assert unsaid
        connections = [o for item in TCP_OBJECTS for o in parse_object(item, "test").policies]
        tcp_tree, _ = network_filter(TARGET, connections, MESH, Proxy(ext_authz=True))
        self.envoy.start(
            {
                "node": {"id": "proxy-1", "cluster": "c"},
                "admin": {"address": {"pipe": {"path": str(self.envoy.admin_socket), "mode": 0o600}}},
                "static_resources": {
                    "clusters": [*snippet["clusters"], *self._late()],
                    "listeners": [
                        self._listener("snippet", [self._http(copied, *copied["http_filters"])]),
                        self._listener("pushed", [self._http(manager, _typed(tree), _typed(asks))]),
                        self._listener("asks", [self._http(manager, _typed(every))]),
                        self._listener("bare", [self._http(manager, _without_certificate(bare))]),
                        self._listener("late", [self._http(manager, _typed(late))]),
                        self._listener("tcp", [_typed(tcp_tree), self._tcp(tcp["access_log"])]),
                        self._listener("tcp-asks", [_typed(tcp_every), self._tcp(tcp["access_log"])]),
                    ],
                },
            }
        )

    def _late(self) -> list[dict[str, Any]]:
        path = str(self.directory / "late.sock")
        return http_snippet(Proxy(), "late", path, prefix="p1")["clusters"]  # type: ignore[no-any-return]

    def _http(self, manager: dict[str, Any], *filters: dict[str, Any]) -> dict[str, Any]:
        route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}}
        text = "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% p1-%REQ(X-REQUEST-ID)% %RESP(X-BURGEE-DECISION)%\n"
        own = extension(
            "file",
            "access_loggers.file.v3.FileAccessLog",
            path=str(self.own_log),
            log_format={"text_format_source": {"inline_string": text}},
        )
        router = extension("router", "filters.http.router.v3.Router")
        return extension(
            "http",
            HCM,
            stat_prefix="http",
            route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            **{**manager, "http_filters": [*filters, router], "access_log": [*manager["access_log"], own]},
        )

    def _tcp(self, access_log: list[Any]) -> dict[str, Any]:
        return extension(
            "tcp", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="agent", access_log=access_log
        )

    def _listener(self, name: str, filters: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "listener_filters": [extension("tls", "filters.listener.tls_inspector.v3.TlsInspector")],
            "filter_chains": [{"filters": filters, "transport_socket": server_tls(self.authority)}],
        }

    def connect(self, listener: str, *uris: str) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if uris:
            pair = self.authority.issue(*uris)
            context.load_cert_chain(pair.certificate, pair.key)
        plain = socket.create_connection(("127.0.0.1", self.envoy.port(listener)), 30)
        return context.wrap_socket(plain, server_hostname="shop")

    def ask(self, listener: str, *uris: str, path: str = "/", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"GET {path} HTTP/1.1", "host: shop", *(f"{k}: {v}" for k, v in named.items())]
        with self.connect(listener, *uris) as stream:
            stream.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode())
            raw = b""
            while data := stream.recv(1 << 16):
                raw += data
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        return Reply(int(first.split()[1]), pairs, body)

    def tcp(self, listener: str, *uris: str) -> bool:
        """Whether a connection reaches the upstream: the agent's gate answers HTTP/2's preface."""
        try:
            with self.connect(listener, *uris) as stream:
                stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
                return bool(stream.recv(9))
        except OSError:
            return False


def _typed(message: Any) -> dict[str, Any]:
    packed = message if hasattr(message, "type_url") else any_of(message)
    return {"name": "policy", "typed_config": MessageToDict(packed, preserving_proto_field_name=True)}


def _without_certificate(packed: Any) -> dict[str, Any]:
    found = _typed(packed)
    del found["typed_config"]["include_peer_certificate"]
    return found


class Both(PolicyLab):
    """The agent and an Envoy."""

    def __init__(self) -> None:
        super().__init__()
        self.proxy = Proxied(Path(self.directory) / "e", self.policy_socket)

    async def ask(self, listener: str, *uris: str, path: str = "/", **headers: str) -> Reply:
        return await asyncio.to_thread(self.proxy.ask, listener, *uris, path=path, **headers)

    async def tcp(self, listener: str, *uris: str) -> bool:
        return await asyncio.to_thread(self.proxy.tcp, listener, *uris)

    async def record(self, id: str) -> DecisionRecord:
        await eventually(lambda: any(r.id == id for r in self.records), seconds=15)
        return [r for r in self.records if r.id == id][-1]

    async def of_connection(self, before: int) -> DecisionRecord:
        await eventually(lambda: any(not r.http for r in self.records[before:]), seconds=15)
        return [r for r in self.records[before:] if not r.http][-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Both]:
    async with Both() as found:
        found.snapshot(entry("t"))
        await found.enforce(*OBJECTS, _workload(), revision=7)
        await asyncio.to_thread(found.proxy.start)
        try:
            await asyncio.to_thread(found.proxy.envoy.port, "pushed")
            yield found
        finally:
            found.proxy.envoy.stop()


def _workload() -> dict[str, Any]:
    return workload("t", TARGET_ID)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_asked_is_decided_and_has_one_id_everywhere(lab: Both) -> None:
    good = await lab.ask("pushed", WEB_ID, path="/x?q=1", x_tenant="blue", x_request_id="forged")
    assert (good.status, good.body) == (200, b"hello")
    assert good.decision == [f"p1-{good.request_id}"]
    record = await lab.record(good.decision[0])
    assert (record.source, record.allowed, record.policy, record.rule) == (Source.EXT_AUTHZ, True, "a/cel", 0)
    assert (record.target, record.principal, record.path) == (TARGET_ID, "example.org/web", "/x")
    assert (record.revision, record.host, record.method, record.source_ip) == (7, "shop", "GET", "127.0.0.1")
    assert record.remote_ip == "127.0.0.1"
    assert record.headers["x-tenant"] == "blue"

    bad = await lab.ask("pushed", WEB_ID, path="/x", x_tenant="red", x_request_id="forged")
    assert bad.status == 403
    assert len(bad.decision) == 1
    assert json.loads(bad.body) == {"error": "refused by policy", "decision": bad.decision[0]}
    assert "forged" not in str(bad)
    record = await lab.record(bad.decision[0])
    assert (record.source, record.allowed, record.reason) == (Source.EXT_AUTHZ, False, "NOTHING_ALLOWS")
    await eventually(lambda: bad.decision[0] in lab.proxy.own_log.read_text(), seconds=15)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_person_copies_has_its_policies_pushed_its_tokens_verified_and_the_rest_asked(lab: Both) -> None:
    def through() -> bool:
        return lab.proxy.ask("snippet", WEB_ID, path="/pushed").status == 200

    await asyncio.to_thread(until, "policies are pushed", through, every=0.2)
    pushed = await lab.ask("snippet", WEB_ID, path="/pushed", x_request_id="forged")
    assert pushed.decision == [f"p2-{pushed.request_id}"]
    record = await lab.record(pushed.decision[0])
    assert (record.source, record.policy) == (Source.PUSHED, "a/named")
    now = int(lab.clock.now().timestamp())
    claims = {"iss": "https://i", "sub": "alice", "exp": now + 600}
    token = ISSUER.token(claims)
    asked = await lab.ask("snippet", WEB_ID, path="/token", authorization=f"Bearer {token}")
    assert asked.status == 200, asked
    assert len(asked.decision) == 1
    record = await lab.record(asked.decision[0])
    assert (record.source, record.policy, record.id) == (Source.EXT_AUTHZ, "a/token", f"p2-{asked.request_id}")
    assert (record.claims or {})["sub"] == "alice"
    for headers in ({}, {"authorization": f"Bearer {ISSUER.token({**claims, 'sub': 'bob'})}"}):
        refused = await lab.ask("snippet", WEB_ID, path="/token", **headers)
        assert (refused.status, refused.decision) == (403, [f"p2-{refused.request_id}"])
    for bad in (ISSUER.token(claims, alg="none"), JwtIssuer().token(claims), ISSUER.token({**claims, "exp": now - 99})):
        refused = await lab.ask("snippet", WEB_ID, path="/pushed", authorization=f"Bearer {bad}")
        assert (refused.status, refused.decision) == (401, [f"p2-{refused.request_id}"])
        assert (await lab.record(refused.decision[0])).reason == "TOKEN_INVALID"


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_proxy_decides_by_itself_reaches_the_log(lab: Both) -> None:
    good = await lab.ask("pushed", WEB_ID, path="/pushed?q", x_request_id="11111111-1111-1111-1111-111111111111")
    assert good.status == 200
    assert not good.request_id.startswith("11111111")
    record = await lab.record(f"p1-{good.request_id}")
    assert (record.source, record.allowed, record.policy, record.rule) == (Source.PUSHED, True, "a/named", 0)
    assert (record.target, record.principal, record.path) == (TARGET_ID, "example.org/web", "/pushed")
    assert (record.proxy, record.method, record.host, record.revision) == ("proxy-1", "GET", "shop", 7)

    bad = await lab.ask("pushed", WEB_ID, path="/never")
    record = await lab.record(bad.decision[0])
    assert (record.source, record.allowed, record.policy, record.rule) == (Source.PUSHED, False, "a/never", 0)
    assert record.reason == "DENIED_BY_RULE"
    assert json.loads(bad.body) == {"error": "refused by policy", "decision": bad.decision[0]}
    again = lab.held.in_force
    assert again is not None
    snapshot = again.snapshot(again.matched(record.target, ()))  # the record is enough to decide again
    decision = snapshot.decide(record.target, record.request)
    assert (decision.allowed, decision.policy, decision.rule) == (record.allowed, record.policy, record.rule)
    assert lab.access_logs.logged(lab.proxy.envoy.process.pid)  # type: ignore[union-attr]
    assert not lab.access_logs.logged(1)

    several = await lab.ask("pushed", WEB_ID, OTHER_ID, path="/pushed")
    record = await lab.record(several.decision[0])
    assert (several.status, record.reason, record.principal) == (403, "CERTIFICATE_NAMES", None)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("proxy", ["pushed", "snippet"])
async def test_no_header_of_a_client_says_what_path_it_asked_for(lab: Both, proxy: str) -> None:
    """Envoy's log prefers it: of a log that believes clients, `suggest` would write what they like."""
    good = await lab.ask(proxy, WEB_ID, path="/pushed?q", x_envoy_original_path="/forged")
    assert good.status == 200
    record = await lab.record(good.decision[0] if good.decision else f"p1-{good.request_id}")
    assert (record.source, record.path) == (Source.PUSHED, "/pushed")


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_asked_is_in_the_log_once(lab: Both) -> None:
    asked = await lab.ask("pushed", WEB_ID, path="/x", x_tenant="blue")
    after = await lab.ask("pushed", WEB_ID, path="/pushed")
    await lab.record(f"p1-{after.request_id}")  # its entry comes after that of the one before
    assert [r.source for r in lab.records if r.id == asked.decision[0]] == [Source.EXT_AUTHZ]


@pytest.mark.asyncio(loop_scope="module")
async def test_attacks_on_a_proxy_that_asks_everything(lab: Both) -> None:
    allowed = await lab.ask("asks", WEB_ID, path="/pushed")
    assert allowed.status == 200
    for uris in ((WEB_ID, OTHER_ID), (OTHER_ID, WEB_ID), (OTHER_ID,), ()):
        refused = await lab.ask("asks", *uris, path="/pushed", x_forwarded_client_cert=f"URI={WEB_ID}")
        assert refused.status == 403
        reason = (await lab.record(refused.decision[0])).reason
        assert reason == ("CERTIFICATE_NAMES" if len(uris) > 1 else "NOTHING_ALLOWS")
    for header in ("x_burgee_target", "x_burgee_decision", "x_burgee_tokens", "x_burgee_remote_ip"):
        forged = await lab.ask("asks", OTHER_ID, path="/pushed", **{header: TARGET_ID})
        assert forged.status == 403
        assert forged.decision == [f"p1-{forged.request_id}"]
    for path in ("/x/../never", "/never?x", "//never", "/%6eever"):
        assert (await lab.ask("asks", WEB_ID, path=path, x_tenant="blue")).status == 403
    kept = await lab.ask("asks", WEB_ID, path="/pushed", x_forwarded_for="9.9.9.9")
    record = await lab.record(kept.decision[0])  # whether a client's word is taken for it is the proxy's setting
    assert (record.source_ip, record.remote_ip) == ("127.0.0.1", "9.9.9.9")
    huge = await lab.ask("asks", WEB_ID, path="/pushed", **{f"x_{n}": "y" * 5000 for n in range(10)})
    assert huge.status == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_a_proxy_that_leaves_the_certificate_out_is_refused_with_that_reason(lab: Both) -> None:
    before = len(lab.records)
    refused = await lab.ask("bare", WEB_ID, path="/pushed", x_request_id="forged")
    assert refused.status == 403
    record = next(r for r in lab.records[before:] if r.source is Source.EXT_AUTHZ)
    assert record.reason == "CERTIFICATE_NOT_INCLUDED"
    assert "include_peer_certificate" in record.detail
    assert record.id.startswith("agent-")  # without the snippet the id is ours, never the client's
    anonymous = await lab.ask("bare", path="/pushed")
    assert anonymous.status == 403
    record = [r for r in lab.records[before:] if r.source is Source.EXT_AUTHZ][-1]
    assert record.reason == "NOTHING_ALLOWS"  # nobody showed a certificate


@pytest.mark.asyncio(loop_scope="module")
async def test_who_cannot_be_asked_in_time_refuses(lab: Both) -> None:
    nobody = await lab.ask("late", WEB_ID, path="/pushed")
    assert nobody.status == 403
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(lab.proxy.directory / "late.sock"))
    silent.listen()
    stop = threading.Event()
    try:
        late = await lab.ask("late", WEB_ID, path="/pushed")
    finally:
        stop.set()
        silent.close()
    assert late.status == 403
    assert late.decision == [f"p1-{late.request_id}"]


@pytest.mark.asyncio(loop_scope="module")
async def test_connections_are_decided_and_logged(lab: Both) -> None:
    before = len(lab.records)
    assert await lab.tcp("tcp", WEB_ID)
    record = await lab.of_connection(before)
    assert (record.source, record.allowed, record.principal) == (Source.PUSHED, True, "example.org/web")
    assert record.id.startswith("p1-")
    before = len(lab.records)
    assert not await lab.tcp("tcp", OTHER_ID)
    record = await lab.of_connection(before)
    assert (record.allowed, record.principal, record.target) == (False, "example.org/other", TARGET_ID)

    await lab.enforce(*TCP_OBJECTS, _workload(), revision=8)
    try:
        before = len(lab.records)
        assert await lab.tcp("tcp-asks", WEB_ID)
        asked = next(r for r in lab.records[before:] if r.source is Source.EXT_AUTHZ)
        assert (asked.http, asked.allowed, asked.principal, asked.sni) == (False, True, "example.org/web", "shop")
        assert asked.revision == 8
        before = len(lab.records)
        assert not await lab.tcp("tcp-asks", OTHER_ID)
        assert not next(r for r in lab.records[before:] if r.source is Source.EXT_AUTHZ).allowed
        assert not await lab.tcp("tcp-asks", WEB_ID, OTHER_ID)
    finally:
        await lab.enforce(*OBJECTS, _workload(), revision=9)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_agent_without_policies_and_a_caller_without_identity_mean_refusal(lab: Both) -> None:
    lab.held.take(None)
    try:
        assert (await lab.ask("asks", WEB_ID, path="/pushed")).status == 403
    finally:
        await lab.enforce(*OBJECTS, _workload(), revision=10)
    assert (await lab.ask("asks", WEB_ID, path="/pushed")).status == 200
    lab.snapshot(entry("t", "/t", WEB), entry("u", "/u", WEB))
    try:
        assert (await lab.ask("asks", WEB_ID, path="/pushed")).status == 403  # it does not say for which it asks
        lab.snapshot()
        assert (await lab.ask("asks", WEB_ID, path="/pushed")).status == 403
    finally:
        lab.snapshot(entry("t"))
    assert (await lab.ask("asks", WEB_ID, path="/pushed")).status == 200
