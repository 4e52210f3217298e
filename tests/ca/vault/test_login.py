"""Every way to log in, against a real OpenBao; and what is said when it does not work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ca.errors import ConfigError, Denied, Unavailable
from ca.runtime.clock import SystemClock
from ca.vault.client import VaultClient
from tests.ca.vault.conftest import Connect, config
from tests.support.openbao import OpenBao, Refused, openbao
from tests.support.openbao_mounts import (
    JwtIssuer,
    enable_auth,
    enable_secrets,
    make_approle,
    make_cert_role,
    make_token,
    write_policy,
)
from tests.support.token_review import TokenReview

pytestmark = pytest.mark.real("OpenBao")


def secret_file(directory: Path, secret: str) -> str:
    path = directory / "secret"
    path.write_text(f"{secret}\n")
    path.chmod(0o600)
    return str(path)


async def sign_something(client: VaultClient, mount: str = "transit") -> None:
    """May do what the policy `signer` allows, and nothing else."""
    await client.write(f"{mount}/keys/a", {"type": "ecdsa-p256"})
    found = await client.read(f"{mount}/keys/a")
    assert found is not None
    assert found["type"] == "ecdsa-p256"
    assert "a" in await client.list(f"{mount}/keys")
    with pytest.raises(Denied) as caught:
        await client.read("sys/policies/acl/signer")
    assert caught.value.reason == "VAULT_DENIED"
    assert "`read`" in caught.value.hint


def allow_signing(bao: OpenBao, *, namespace: str = "") -> None:
    rules = {"transit/keys/*": ["create", "read", "update", "delete"], "transit/keys": ["list"]}
    write_policy(bao, "signer", rules, namespace=namespace)


@pytest.fixture
def signing(bao: OpenBao) -> OpenBao:
    try:
        enable_secrets(bao, "transit")
    except Refused:
        pass  # another test was first
    allow_signing(bao)
    return bao


async def test_by_a_token_from_a_file(signing: OpenBao, connect: Connect, tmp_path: Path) -> None:
    token = make_token(signing, "signer", ttl="1h")
    client = await connect(signing, {"token_file": secret_file(tmp_path, token)})
    await sign_something(client)


async def test_by_approle_at_a_mount_of_its_own(signing: OpenBao, connect: Connect, tmp_path: Path) -> None:
    mount = enable_auth(signing, "approle", "approle-own")
    role_id, secret_id = make_approle(signing, "burgee", "signer", mount=mount)
    secret = secret_file(tmp_path, secret_id)
    client = await connect(signing, {"approle": {"mount": mount, "role_id": role_id, "secret_id_file": secret}})
    await sign_something(client)


async def test_by_jwt(signing: OpenBao, connect: Connect, tmp_path: Path) -> None:
    mount = enable_auth(signing, "jwt", "jwt-own")
    token = JwtIssuer(signing, "burgee", "signer", mount=mount).token()
    jwt = {"mount": mount, "role": "burgee", "jwt_file": secret_file(tmp_path, token)}
    await sign_something(await connect(signing, {"jwt": jwt}))


async def test_by_a_kubernetes_service_account(signing: OpenBao, connect: Connect, tmp_path: Path) -> None:
    mount = enable_auth(signing, "kubernetes", "kubernetes-own")
    with TokenReview() as cluster:
        cluster.configure(signing, mount)
        role = {
            "bound_service_account_names": ["burgee-server"],
            "bound_service_account_namespaces": ["burgee"],
            "audience": "vault",
            "token_policies": ["signer"],
        }
        signing.call("POST", f"auth/{mount}/role/burgee", role)
        token = cluster.token("burgee", "burgee-server", "vault")
        auth = {"mount": mount, "role": "burgee", "token_file": secret_file(tmp_path, token)}
        await sign_something(await connect(signing, {"kubernetes": auth}))
        stranger = secret_file(tmp_path, cluster.token("burgee", "somebody-else", "vault"))
        assert (await refused(signing, {"kubernetes": {**auth, "token_file": stranger}})).reason == "VAULT_LOGIN_FAILED"


async def test_by_a_client_certificate(connect: Connect, tmp_path: Path) -> None:
    with openbao(real=True) as bao:
        enable_secrets(bao, "transit")
        allow_signing(bao)
        enable_auth(bao, "cert")
        own, other = bao.ca.client("burgee"), bao.ca.client("other")
        make_cert_role(bao, "burgee", own, "signer")
        own.write(tmp_path / "c.pem", tmp_path / "c.key")
        auth = {"role": "burgee", "cert_file": str(tmp_path / "c.pem"), "key_file": str(tmp_path / "c.key")}
        await sign_something(await connect(bao, {"cert": auth}))
        (tmp_path / "c.pem").write_bytes(other.pem)
        error = await refused(bao, {"cert": auth})
        assert error.reason == "VAULT_FILE"  # that key is not the certificate's


async def test_in_a_namespace(signing: OpenBao, connect: Connect, tmp_path: Path) -> None:
    signing.call("POST", "sys/namespaces/team", {})
    enable_secrets(signing, "transit", namespace="team")
    enable_auth(signing, "approle", namespace="team")
    allow_signing(signing, namespace="team")
    role_id, secret_id = make_approle(signing, "burgee", "signer", namespace="team")
    auth = {"approle": {"role_id": role_id, "secret_id_file": secret_file(tmp_path, secret_id)}}
    await sign_something(await connect(signing, auth, namespace="team"))
    assert signing.call("GET", "transit/keys/a", namespace="team")["data"]["name"] == "a"
    assert (await refused(signing, auth)).reason == "VAULT_LOGIN_FAILED"  # there is no such role outside


async def refused(bao: OpenBao, auth: dict[str, Any], **options: Any) -> ConfigError:
    client = VaultClient(config(bao, auth, **options), clock=SystemClock(), purpose="test")
    try:
        with pytest.raises(ConfigError) as caught:
            await client.start()
        with pytest.raises(Unavailable):
            await client.read("sys/health")
        problem = client.problem()
        assert problem is not None
        assert problem.reason == caught.value.reason
        return caught.value
    finally:
        await client.close()


async def test_what_is_refused_is_said_at_the_start(signing: OpenBao, tmp_path: Path) -> None:
    error = await refused(signing, {"token_file": secret_file(tmp_path, "s.nobody-made-this-one")})
    assert (error.reason, "put a new token" in error.hint) == ("VAULT_LOGIN_FAILED", True)
    role = {"role_id": "no-such-role", "secret_id_file": secret_file(tmp_path, "no-such-secret")}
    error = await refused(signing, {"approle": {"mount": "nowhere", **role}})
    assert (error.reason, "role_id" in error.hint) == ("VAULT_LOGIN_FAILED", True)


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", "käse".encode(), b"a\x00b"])
async def test_a_file_without_a_token_is_an_error(signing: OpenBao, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    assert (await refused(signing, {"token_file": str(tmp_path / "secret")})).reason == "VAULT_FILE"


async def test_a_missing_file_is_an_error(signing: OpenBao, tmp_path: Path) -> None:
    error = await refused(signing, {"token_file": str(tmp_path / "none")})
    assert (error.reason, str(tmp_path / "none") in error.detail) == ("VAULT_FILE", True)


async def test_a_token_that_cannot_be_asked_about_is_refused(signing: OpenBao, tmp_path: Path) -> None:
    """Without the policy `default` nobody could tell a token that is denied something from one that is none."""
    mount = enable_auth(signing, "approle", "approle-bare")
    role_id, secret_id = make_approle(signing, "burgee", "signer", mount=mount, token_no_default_policy=True)
    auth = {"mount": mount, "role_id": role_id, "secret_id_file": secret_file(tmp_path, secret_id)}
    error = await refused(signing, {"approle": auth})
    assert (error.reason, "policy `default`" in error.detail) == ("VAULT_LOGIN_FAILED", True)
