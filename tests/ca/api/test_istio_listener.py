"""The listener for Istio's proxies: what it shows, whom it lets in, the shape of its answers."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.authority.state import AuthorityKind
from ca.errors import ConfigError, Unavailable
from ca.runtime.config import from_values
from ca.runtime.kube import KubeClient
from ca.runtime.server_config import ServerConfig
from ca.service.configured import check
from ca.service.istio_pods import NodePods
from ca.service.server_svid import ServerSvid
from ca.service.sign_on import SignOn
from tests.ca.api.istio_lab import DNS, METHOD, WEB, Api, client_of, istio, token_of
from tests.ca.api.refusals import Code, refused
from tests.contracts.upstreams import DISK_FILES, disk_files
from tests.support.clock import FakeClock
from tests.support.istio_client import (
    IstioClient,
    new_key,
    pilot_csr,
    read_as_pilot_agent,
    read_as_ztunnel,
)
from tests.support.server import RunningServer, eventually, running_server


@pytest.fixture
def api() -> Iterator[Api]:
    running = Api().start()
    running.node("n1")
    running.node("n2")
    yield running
    running.stop()


@pytest.fixture
async def server(api: Api) -> AsyncIterator[RunningServer]:
    async with running_server(istio=istio(api)) as running:
        yield running


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[IstioClient]:
    async with client_of(server) as made:
        yield made


async def test_proxies_that_send_no_cluster_belong_to_the_only_or_the_default_one(api: Api) -> None:
    csr, token = pilot_csr(new_key("p256"), WEB), token_of(api)
    one = istio(api)["clusters"]["Kubernetes"]
    async with running_server(istio=istio(api)) as server, client_of(server) as client:
        assert await client.ask(csr, token, cluster=None)
        assert await client.ask(csr, token, cluster="")
    two = istio(api, clusters={"east": one, "west": one | {"namespaces": ["lab"]}})
    async with running_server(istio=two) as server, client_of(server) as client:
        assert await client.ask(csr, token, cluster="east")
        with refused(Code.PERMISSION_DENIED, reason="ISTIO_NAMESPACE"):
            await client.ask(csr, token, cluster="west")
        with refused(Code.UNAUTHENTICATED, reason="ISTIO_CLUSTER_UNKNOWN"):
            await client.ask(csr, token, cluster=None)
    async with running_server(istio=two | {"default_cluster": "east"}) as server, client_of(server) as client:
        assert await client.ask(csr, token, cluster=None)


async def test_the_listener_shows_its_dns_names_and_serves_nothing_else(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    csr, token = pilot_csr(new_key("p256"), WEB), token_of(api)
    async with client_of(server, "localhost") as by_another_name:
        assert await by_another_name.ask(csr, token)
    async with client_of(server, "somebody.else") as wrong:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wrong.ask(csr, token)
        assert caught.value.code() is Code.UNAVAILABLE  # the client's own verdict: nothing was sent
    for method in ("/spire.api.server.bundle.v1.Bundle/GetBundle", "/grpc.health.v1.Health/Check"):
        with refused(Code.UNIMPLEMENTED):
            await client.channel.unary_unary(method)(b"", timeout=10)
    with refused(Code.UNIMPLEMENTED):
        await (await server.caller()).raw(METHOD)


async def test_the_listeners_certificate_is_renewed_under_open_connections(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    assert server.server.istio is not None
    csr, token = pilot_csr(new_key("p256"), WEB), token_of(api)
    assert await client.ask(csr, token)
    before = await _shown(server)
    await server.server.istio.certificate.renew()
    after = await _shown(server)
    assert before.serial_number != after.serial_number
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [DNS, "localhost"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/spire/server"]
    assert await client.ask(csr, token)


async def _shown(server: RunningServer) -> x509.Certificate:
    assert server.server.istio is not None
    host, port = server.server.istio.address
    return x509.load_pem_x509_certificate((await asyncio.to_thread(ssl.get_server_certificate, (host, port))).encode())


async def test_the_listener_opens_by_itself_once_the_server_can_sign(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keys are out of reach at the start. Until then it is a warning: agents have a listener of their own."""
    start, renew, can_sign = SignOn.start, ServerSvid.renew, asyncio.Event()

    async def start_without(self: SignOn) -> None:
        await start(self)
        self.done = False

    async def renew_later(self: ServerSvid) -> None:
        if not can_sign.is_set():
            raise Unavailable("nothing signs", reason="NO_AUTHORITY")
        await renew(self)

    monkeypatch.setattr(SignOn, "start", start_without)
    monkeypatch.setattr("ca.api.istio_server.ServerSvid", type("Later", (ServerSvid,), {"renew": renew_later}))
    async with running_server(istio=istio(api)) as server:
        assert server.server.istio is not None
        assert server.server.istio.address == ("", 0)
        assert server.server.health.warnings()["istio"].reason == "ISTIO_CLOSED"
        can_sign.set()
        await eventually(lambda: bool(server.server.istio and server.server.istio.address[1]))
        assert "istio" not in server.server.health.warnings()
        async with client_of(server) as client:
            assert await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api))


async def test_a_second_root_comes_along_in_the_last_element(api: Api, server: RunningServer) -> None:
    await server.server.authority.prepare(AuthorityKind.X509)  # published before it signs
    await eventually(lambda: len(server.roots) == 2)
    async with client_of(server) as client:
        chain = await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api))
    leaf, roots = read_as_ztunnel(chain, WEB)
    assert len(chain) == 2
    assert [root.public_bytes(Encoding.DER) for root in roots] == server.roots
    assert read_as_pilot_agent(chain) == (leaf, roots)


async def test_intermediates_come_one_by_one(api: Api, tmp_path: Path) -> None:
    disk_files(tmp_path)
    config = {name: str(tmp_path / file) for name, file in DISK_FILES.items()}
    upstream = {"plugin": "disk", "config": config}
    async with running_server(istio=istio(api), upstream=upstream) as server, client_of(server) as client:
        chain = await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api))
        assert len(chain) == 4
        leaf, roots = read_as_ztunnel(chain, WEB)
        assert read_as_pilot_agent(chain) == (leaf, roots)
        path = [x509.load_pem_x509_certificate(element.encode()) for element in chain[:-1]]
        for below, above in zip(path, [*path[1:], *roots], strict=True):
            below.verify_directly_issued_by(above)


async def test_pods_of_a_node_are_remembered_for_moments_and_new_ones_seen_at_once(api: Api) -> None:
    clock = FakeClock()
    pods = NodePods(KubeClient.from_kubeconfig(api.kubeconfig()), clock)
    api.pod("shop", "web-1", node="n1", account="web")

    def asked() -> int:
        return sum("fieldSelector" in path for _, path, _ in api.asked)

    assert await pods.has("n1", "shop", "web")
    assert await pods.has("n1", "shop", "web")
    assert asked() == 1
    assert not await pods.has("n1", "shop", "api")
    api.pod("shop", "api-1", node="n1", account="api")
    assert await pods.has("n1", "shop", "api")
    assert asked() == 3
    await asyncio.gather(*(pods.has("n1", "shop", f"none-{number}") for number in range(50)))
    assert asked() <= 5
    del api.objects["/api/v1/namespaces/shop/pods/web-1"]
    await clock.advance(6)
    assert not await pods.has("n1", "shop", "web")


async def test_of_many_nodes_the_latest_are_remembered(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.service.istio_pods.MAX_REMEMBERED", 3)
    pods = NodePods(KubeClient.from_kubeconfig(api.kubeconfig()), FakeClock())
    for number in range(5):
        api.pod("shop", f"web-{number}", node=f"n{number}", account="web")
        assert await pods.has(f"n{number}", "shop", "web")
    before = len(api.asked)
    assert await pods.has("n4", "shop", "web")
    assert len(api.asked) == before
    assert await pods.has("n0", "shop", "web")
    assert len(api.asked) == before + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dns_names": []}, "dns_names"),
        ({"dns_names": ["a b"]}, "invalid"),
        ({"clusters": {}}, "clusters"),
        ({"default_cluster": "nope"}, "default_cluster"),
        ({"clusters": {"K": {"namespaces": []}}}, "namespaces"),
        ({"clusters": {"K": {"namespaces": ["Shop"]}}}, "namespace"),
        ({"clusters": {"K": {}}}, "namespaces"),
        ({"clusters": {"K": {"namespaces": ["*"], "impersonators": ["ztunnel"]}}}, "namespace/service-account"),
        ({"max_ttl_seconds": 20_000}, "istio.max_ttl_seconds of 20000"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    good = {"dns_names": [DNS], "clusters": {"K": {"namespaces": ["*"]}}}
    values = {"trust_domain": "example.org", "data_dir": str(tmp_path)}
    check(from_values(values | {"istio": good}, ServerConfig))
    with pytest.raises(ConfigError, match=words):
        check(from_values(values | {"istio": good | change}, ServerConfig))


def test_a_server_without_it_has_nothing_of_it_in_memory() -> None:
    program = "import sys, ca.server; print([m for m in sys.modules if 'istio' in m or 'token_review' in m])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['ca.runtime.istio_config']"
