"""The client of the Kubernetes API: ways in, files that change, and errors that say what is missing."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca.errors import BurgeeError, ConfigError, Denied, InvalidArgument, NotFound, Unavailable
from ca.runtime import kube_access
from ca.runtime.kube import KubeClient, object_path, permission
from ca.runtime.kube_access import KubeAccess, in_cluster_access, read_kubeconfig
from tests.support.kube_stand_in import REVIEWS, KubeStandIn

NODE = "/api/v1/nodes/n1"


@pytest.fixture
def api() -> Iterator[KubeStandIn]:
    stand_in = KubeStandIn().start()
    stand_in.node("n1")
    yield stand_in
    stand_in.stop()


def changed(path: Path, **sections: Any) -> Path:
    """The kubeconfig with another user or cluster."""
    values = yaml.safe_load(path.read_text())
    for name, value in sections.items():
        values[f"{name}s"][0][name].update(value)
    path.write_text(yaml.safe_dump(values))
    return path


async def who(api: KubeStandIn, path: Path) -> str:
    client = KubeClient.from_kubeconfig(path)
    assert (await client.get(NODE))["metadata"]["name"] == "n1"
    client.close()
    return api.asked[-1][2]


async def test_a_kubeconfig_lets_in_by_token_token_file_and_certificate(api: KubeStandIn, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    client = api.ca.client("somebody")
    client.write(tmp_path / "c.pem", tmp_path / "c.key")
    assert await who(api, api.kubeconfig(token="inline")) == "inline"
    assert await who(api, api.kubeconfig(token="inline", tokenFile=str(tmp_path / "token"))) == "from-file"
    files = {"client-certificate": str(tmp_path / "c.pem"), "client-key": str(tmp_path / "c.key")}
    assert await who(api, api.kubeconfig(**files)) == "somebody"
    data = {
        "client-certificate-data": base64.b64encode(client.pem).decode(),
        "client-key-data": base64.b64encode(client.key_pem).decode(),
    }
    assert await who(api, api.kubeconfig(**data)) == "somebody"
    ca_data = {"certificate-authority-data": base64.b64encode(api.ca.pem).decode(), "certificate-authority": "gone"}
    assert await who(api, changed(api.kubeconfig(token="t"), cluster=ca_data)) == "t"


async def test_files_of_a_kubeconfig_are_beside_it(api: KubeStandIn) -> None:
    (api.directory / "relative").write_text("beside")
    path = changed(api.kubeconfig(tokenFile="relative"), cluster={"certificate-authority": "ca.pem"})
    assert await who(api, path) == "beside"


async def test_a_token_file_is_read_anew_and_a_changed_kubeconfig_too(api: KubeStandIn, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    path = api.kubeconfig(tokenFile=str(token))
    client = KubeClient.from_kubeconfig(path)
    seen = []
    for value in ("one", "two"):
        token.write_text(value)
        await client.get(NODE)
        seen.append(api.asked[-1][2])
    path.write_text(api.kubeconfig(token="three").read_text())
    await client.get(NODE)
    path.write_text("half written: [")
    await client.get(NODE)
    assert [*seen, *(who for _, _, who in api.asked[-2:])] == ["one", "two", "three", "three"]
    client.close()


async def test_a_ca_that_is_replaced_is_believed_from_then_on(api: KubeStandIn, tmp_path: Path) -> None:
    """As a kubelet does it: the link goes to a new file."""
    other = KubeStandIn()  # whose CA signed nothing here
    link = tmp_path / "ca.crt"
    link.symlink_to(other.ca_file)
    client = KubeClient(KubeAccess(server=api.url, ca_file=link), source="the API")
    with pytest.raises(Unavailable) as caught:
        await client.get(NODE)
    assert caught.value.reason == "HTTP_UNREACHABLE"
    new = tmp_path / "new"
    new.symlink_to(api.ca_file)
    os.replace(new, link)
    assert await client.get(NODE)
    client.close()


async def test_inside_of_a_pod_its_service_account_asks(
    api: KubeStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError):
        KubeClient.in_cluster()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", api.url.rpartition(":")[2])
    with pytest.raises(ConfigError) as caught:
        in_cluster_access(tmp_path)
    assert "no service account token" in caught.value.detail
    (tmp_path / "ca.crt").write_bytes(api.ca.pem)
    (tmp_path / "token").write_text("pods-own")
    client = KubeClient(lambda: in_cluster_access(tmp_path), source="the API")
    await client.get(NODE)
    assert api.asked[-1][2] == "pods-own"
    client.close()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert in_cluster_access(tmp_path).server.startswith("https://[fd00::1]:")


USERS: list[tuple[dict[str, Any], str]] = [
    ({"exec": {"command": "aws"}}, "`exec`"),
    ({"auth-provider": {"name": "gcp"}}, "`auth-provider`"),
    ({"username": "a", "password": "b"}, "not supported"),
    ({"as": "somebody-else"}, "`as`"),
    ({"token": 7}, "is not text"),
    ({"client-certificate": "only.pem"}, "come together"),
    ({"client-certificate-data": "!", "client-key-data": "!"}, "base64"),
]


@pytest.mark.parametrize(("user", "said"), USERS)
def test_what_is_not_done_is_refused_and_not_left_out(api: KubeStandIn, user: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_kubeconfig(api.kubeconfig(**user))
    assert (caught.value.reason, said in caught.value.detail) == ("KUBE_CONFIG", True), caught.value.detail


@pytest.mark.parametrize(
    "cluster",
    [{"insecure-skip-tls-verify": True}, {"proxy-url": "http://p"}, {"tls-server-name": "x"}, {"server": "http://h"}],
)
def test_nor_is_a_cluster_asked_otherwise_than_it_says(api: KubeStandIn, cluster: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        read_kubeconfig(changed(api.kubeconfig(), cluster=cluster))


@pytest.mark.parametrize(
    "text", ["", "[]", "a: [", "current-context: x", "current-context: x\ncontexts: [{name: x, context: {user: u}}]"]
)
def test_what_is_no_kubeconfig_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    for path in (tmp_path / "k", tmp_path / "none"):
        with pytest.raises(ConfigError):
            KubeClient.from_kubeconfig(path)


def test_no_secret_of_a_kubeconfig_is_shown(api: KubeStandIn, tmp_path: Path) -> None:
    assert "s3cret" not in repr(read_kubeconfig(api.kubeconfig(token="s3cret")))
    (tmp_path / "k").write_text("token: s3cret\n\tbad")
    with pytest.raises(ConfigError) as caught:
        read_kubeconfig(tmp_path / "k")
    assert "s3cret" not in caught.value.detail + caught.value.hint


def test_a_large_kubeconfig_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"#" * (kube_access.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError):
        read_kubeconfig(tmp_path / "k")


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (401, Denied, "KUBE_UNAUTHENTICATED"),
        (403, Denied, "KUBE_FORBIDDEN"),
        (404, NotFound, "KUBE_NOT_FOUND"),
        (429, Unavailable, "KUBE_STATUS"),
        (500, Unavailable, "KUBE_STATUS"),
        (302, Unavailable, "KUBE_STATUS"),
    ],
)
async def test_statuses_become_errors(api: KubeStandIn, status: int, kind: type[BurgeeError], reason: str) -> None:
    api.refuse["POST", REVIEWS] = status
    client = KubeClient.from_kubeconfig(api.kubeconfig(), source="cluster `a`")
    with pytest.raises(kind) as caught:
        await client.create(REVIEWS, {})
    assert caught.value.reason == reason
    assert "cluster `a`" in caught.value.detail
    assert "told to refuse" in str(caught.value.__cause__)
    if status == 403:
        assert "create `tokenreviews.authentication.k8s.io`" in caught.value.detail
    client.close()


async def test_a_missing_or_odd_token_file_is_unavailable(api: KubeStandIn, tmp_path: Path) -> None:
    token = tmp_path / "token"
    client = KubeClient.from_kubeconfig(api.kubeconfig(tokenFile=str(token)))
    for content in (None, "", "a b", "a\r\nHost: b", "x" * 100_000):
        if content is not None:
            token.write_text(content)
        with pytest.raises(Unavailable) as caught:
            await client.get(NODE)
        assert caught.value.reason == "KUBE_CREDENTIALS"
    assert not api.asked
    client.close()


async def test_who_is_not_certified_by_the_ca_is_not_asked(api: KubeStandIn) -> None:
    other = KubeStandIn()
    path = changed(api.kubeconfig(), cluster={"certificate-authority": str(other.ca_file)})
    with pytest.raises(Unavailable) as caught:
        await KubeClient.from_kubeconfig(path).get(NODE)
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert not api.asked


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", "/api/v1/nodes/n1", "get `nodes`"),
        ("GET", "/api/v1/nodes", "list `nodes`"),
        ("GET", "/api/v1/namespaces/a/pods/b", "get `pods` in namespace `a`"),
        ("GET", "/api/v1/namespaces/a", "get `namespaces`"),
        ("GET", "/api/v1/nodes/n1/pods", "get `nodes/pods`"),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", "patch `deployments/scale.apps` in namespace `a`"),
        ("GET", "/pods", "GET `/pods`"),
        ("GET", "/api/v1", "GET `/api/v1`"),
    ],
)
def test_permissions_are_named_as_rbac_names_them(method: str, path: str, words: str) -> None:
    assert permission(method, path) == words


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a?b", "a%2fb", "a\n", "-a", "a" * 254])
def test_a_name_leads_nowhere_else(name: str) -> None:
    with pytest.raises(InvalidArgument):
        object_path("/api/v1/nodes", name)
