"""A whole server whose keys are in a real OpenBao with storage, TLS and a seal: issuing, outages, what is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import func, select

from ca.errors import ConfigError
from ca.proto.spire import server_bundle_pb2, server_svid_pb2
from ca.runtime.rpc import error_of
from ca.store.tables import issuance
from tests.support.openbao import OpenBao, openbao
from tests.support.openbao_mounts import enable_auth, make_approle, make_token, revoke_token
from tests.support.server import Caller, RunningServer, entry, eventually, make_csr, running_server
from tests.support.transit import documented_policy, new_transit

pytestmark = pytest.mark.real("OpenBao")

TIMEOUT_SECONDS = 1.0
RECOVERY_SECONDS = 10.0
BATCH = 500


@pytest.fixture(scope="module")
def one() -> Iterator[OpenBao]:
    with openbao(real=True) as bao:
        enable_auth(bao, "approle")
        yield bao


class Vault:
    """The OpenBao of one test: an engine of its own and a server's way into it."""

    def __init__(self, bao: OpenBao, directory: Path) -> None:
        self.bao = bao
        self.mount, self.policy = new_transit(bao)
        self.secret = directory / "secret-id"
        role_id, secret_id = make_approle(bao, self.mount, self.policy, token_ttl="1h")
        self.secret.write_text(secret_id)
        self.approle = {"approle": {"role_id": role_id, "secret_id_file": str(self.secret)}}

    def keys(self, auth: dict[str, Any] | None = None) -> dict[str, Any]:
        config = {
            "address": self.bao.address,
            "ca_file": str(self.bao.ca_file),
            "mount": self.mount,
            "auth": auth or self.approle,
            "timeout_seconds": TIMEOUT_SECONDS,
        }
        return {"plugin": "vault_transit", "config": config}

    def allow(self, policy: str) -> None:
        self.bao.call("PUT", f"sys/policies/acl/{self.policy}", {"policy": policy})

    @property
    def names(self) -> list[str]:
        return list(self.bao.call("GET", f"{self.mount}/keys?list=true")["data"]["keys"])


@pytest.fixture
def vault(one: OpenBao, tmp_path: Path) -> Iterator[Vault]:
    """Well again afterwards, however a test ended."""
    yield Vault(one, tmp_path)
    if one.health() != 200:
        one.restart()


@asynccontextmanager
async def serving(keys: dict[str, Any], **changes: Any) -> AsyncIterator[tuple[RunningServer, Caller, str]]:
    """A server, an agent of it, and an entry of that agent."""
    async with running_server(keys=keys, **changes) as running:
        identity, agent = await running.agent()
        (made,) = await running.create(entry("/w", identity.path))
        yield running, agent, made.id


async def issue(agent: Caller, entry_id: str, count: int = 1) -> list[x509.Certificate]:
    """Whole success, or the failure of all."""
    csr = make_csr()
    params = [server_svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=csr)] * count
    request = server_svid_pb2.BatchNewX509SVIDRequest(params=params)
    results = (await agent.svids.BatchNewX509SVID(request, timeout=30)).results
    assert {result.status.code for result in results} == {0}
    assert len(results) == count
    return [x509.load_der_x509_certificate(result.svid.cert_chain[0]) for result in results]


async def refusal(agent: Caller, entry_id: str, count: int = 1) -> str:
    """The reason of Unavailable."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await issue(agent, entry_id, count)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    return error_of(caught.value).reason


async def recovers(running: RunningServer, agent: Caller, entry_id: str) -> None:
    async def again() -> bool:
        try:
            return bool(await issue(agent, entry_id)) and running.server.health.ready
        except grpc.aio.AioRpcError:
            return False

    await eventually(again, seconds=RECOVERY_SECONDS)


def problems(running: RunningServer) -> dict[str, str]:
    return {name: problem.reason for name, problem in running.server.health.problems().items()}


async def test_batches_and_tokens_are_signed_by_keys_that_stay_in_openbao(vault: Vault) -> None:
    async with serving(vault.keys()) as (running, agent, entry_id):
        (root,) = [x509.load_der_x509_certificate(der) for der in running.roots]
        certificates = await issue(agent, entry_id, BATCH)
        for certificate in certificates:
            certificate.verify_directly_issued_by(root)
        assert len({certificate.serial_number for certificate in certificates}) == BATCH
        request = server_svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=["a"])
        assert (await agent.svids.NewJWTSVID(request)).svid.token.count(".") == 2
        assert len(vault.names) == 2
        assert all(name.startswith("burgee-example.org-") for name in vault.names)
        assert not (running.config.data_dir / "keys").exists()
        await running.restart()
        assert running.roots == [root.public_bytes(Encoding.DER)]
        assert len(vault.names) == 2


@pytest.mark.parametrize("key_type", ["ec-p384", "rsa-2048"])
async def test_other_key_types_issue_as_well(vault: Vault, key_type: str) -> None:
    async with serving(vault.keys(), ca_key_type=key_type, jwt_key_type=key_type) as (running, agent, entry_id):
        (root,) = [x509.load_der_x509_certificate(der) for der in running.roots]
        for certificate in await issue(agent, entry_id, 20):
            certificate.verify_directly_issued_by(root)
        request = server_svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=["a"])
        await agent.svids.NewJWTSVID(request)


async def test_sealed_it_says_so_at_once_records_nothing_and_goes_on_when_unsealed(vault: Vault) -> None:
    async with serving(vault.keys()) as (running, agent, entry_id):
        vault.bao.seal()
        assert await refusal(agent, entry_id) == "VAULT_SEALED"
        before = await recorded(running)
        began = time.monotonic()
        for _ in range(20):
            assert await refusal(agent, entry_id) == "VAULT_SEALED"
        request = server_svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=["a"])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.svids.NewJWTSVID(request)
        assert error_of(caught.value).reason == "VAULT_SEALED"
        assert time.monotonic() - began < TIMEOUT_SECONDS
        assert await recorded(running) == before
        assert problems(running) == {"keys": "VAULT_SEALED"}
        vault.bao.unseal()
        await recovers(running, agent, entry_id)


async def recorded(running: RunningServer) -> int:
    async with running.server.store._database.engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(issuance))).scalar_one())


async def test_hanging_it_is_bounded_and_everything_else_goes_on(vault: Vault) -> None:
    async with serving(vault.keys()) as (running, agent, entry_id):
        vault.bao.suspend()
        began = time.monotonic()
        reasons = await asyncio.gather(*(refusal(agent, entry_id, 20) for _ in range(30)))
        assert time.monotonic() - began < 4 * TIMEOUT_SECONDS
        assert set(reasons) == {"VAULT_TIMEOUT"}
        began = time.monotonic()
        await running.local.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
        assert await refusal(agent, entry_id) == "VAULT_TIMEOUT"
        assert time.monotonic() - began < TIMEOUT_SECONDS / 2
        assert problems(running) == {"keys": "VAULT_TIMEOUT"}
        assert running.server.health.problems(live_only=True) == {}
        vault.bao.resume()
        await recovers(running, agent, entry_id)


async def test_a_permission_removed_is_told_and_over_when_it_is_given_back(vault: Vault) -> None:
    async with serving(vault.keys()) as (running, agent, entry_id):
        whole = documented_policy(vault.mount)
        vault.allow(whole.replace('["update"]', '["deny"]'))
        assert await refusal(agent, entry_id) == "VAULT_DENIED"
        assert problems(running) == {"keys": "VAULT_DENIED"}
        vault.allow(whole)
        await recovers(running, agent, entry_id)


async def test_restarted_with_a_new_token_it_goes_on(vault: Vault, tmp_path: Path) -> None:
    file = tmp_path / "token"
    old = make_token(vault.bao, vault.policy, ttl="1h")
    file.write_text(old)
    async with serving(vault.keys({"token_file": str(file)})) as (running, agent, entry_id):
        revoke_token(vault.bao, old)
        await asyncio.to_thread(vault.bao.restart)
        await eventually(lambda: problems(running).get("keys") == "VAULT_LOGIN_FAILED", seconds=RECOVERY_SECONDS)
        assert await refusal(agent, entry_id) == "VAULT_LOGIN_FAILED"
        file.write_text(make_token(vault.bao, vault.policy, ttl="1h"))
        await recovers(running, agent, entry_id)


async def test_away_at_the_start_it_is_up_not_ready_and_opens_when_it_can_sign(vault: Vault) -> None:
    vault.bao.stop()
    async with running_server(keys=vault.keys()) as running:
        assert running.server.address == ("", 0)
        assert problems(running)["keys"] == "VAULT_UNREACHABLE"
        assert problems(running)["authority"] == "NO_ACTIVE_AUTHORITY"
        assert (await running.token()) != ""  # administration goes on
        vault.bao.start()
        await eventually(lambda: problems(running).get("keys") == "VAULT_SEALED")
        vault.bao.unseal()
        await eventually(lambda: running.server.health.ready, seconds=RECOVERY_SECONDS)
        identity, agent = await running.agent()
        (made,) = await running.create(entry("/w", identity.path))
        await issue(agent, made.id)


async def test_a_restart_while_openbao_is_away_keeps_the_authorities(vault: Vault) -> None:
    """What is out of reach is not gone: nothing is retired, nothing is made anew."""
    async with serving(vault.keys()) as (running, _, _):
        before, names = running.roots, vault.names
        vault.bao.seal()
        await running.restart()
        await asyncio.sleep(3)
        assert not running.server.sign_on.done
        vault.bao.unseal()
        await eventually(lambda: running.server.health.ready, seconds=RECOVERY_SECONDS)
        assert running.roots == before
        assert vault.names == names
        assert [a.status for a in running.server.authority.authorities] == ["active", "active"]


async def test_what_only_somebody_can_change_ends_the_start(vault: Vault) -> None:
    vault.secret.write_text("no-such-secret-id")
    with pytest.raises(ConfigError) as caught:
        async with running_server(keys=vault.keys()):
            pass
    assert caught.value.reason == "VAULT_LOGIN_FAILED"


async def test_a_stopped_server_leaves_no_token(vault: Vault) -> None:
    async with running_server(keys=vault.keys()):
        assert len(tokens(vault)) == 1
    assert tokens(vault) == []


def tokens(vault: Vault) -> list[str]:
    found = []
    for accessor in vault.bao.call("GET", "auth/token/accessors?list=true")["data"]["keys"]:
        data = vault.bao.call("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        if vault.policy in data["policies"]:
            found.append(accessor)
    return found
