"""OpenBao sealed, stopped, hanging, restarted; tokens revoked, permissions removed: bounded, told, and over soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.errors import BurgeeError, Denied, Unavailable
from ca.vault.client import VaultClient
from tests.ca.vault.conftest import Connect
from tests.support.openbao import OpenBao, openbao
from tests.support.openbao_mounts import enable_auth, enable_secrets, make_approle, make_token, revoke_token
from tests.support.openbao_mounts import write_policy as allow
from tests.support.server import eventually

pytestmark = pytest.mark.real("OpenBao")

RECOVERY_SECONDS = 10.0
TIMEOUT_SECONDS = 1.0
KEYS = {"transit/keys/*": ["create", "read", "update"]}


@pytest.fixture(scope="module")
def one() -> Iterator[OpenBao]:
    with openbao(real=True) as bao:
        enable_secrets(bao, "transit")
        enable_auth(bao, "approle")
        yield bao


@pytest.fixture
def real(one: OpenBao) -> Iterator[OpenBao]:
    """Well again after each test, whatever that did and however it ended."""
    yield one
    if one.health() != 200:
        one.restart()


@pytest.fixture
async def client(real: OpenBao, connect: Connect, tmp_path: Path) -> VaultClient:
    allow(real, "signer", KEYS)
    role_id, secret_id = make_approle(real, "burgee", "signer")
    (tmp_path / "secret").write_text(secret_id)
    approle = {"role_id": role_id, "secret_id_file": str(tmp_path / "secret")}
    client = await connect(real, {"approle": approle}, timeout_seconds=TIMEOUT_SECONDS)
    await client.write("transit/keys/a", {"type": "ecdsa-p256"})
    return client


async def failure(client: VaultClient) -> BurgeeError:
    with pytest.raises(Unavailable) as caught:
        await client.read("transit/keys/a")
    return caught.value


async def works(client: VaultClient) -> bool:
    try:
        return await client.read("transit/keys/a") is not None
    except BurgeeError:
        return False


async def recovers(client: VaultClient) -> None:
    await eventually(lambda: works(client), seconds=RECOVERY_SECONDS)
    assert client.problem() is None


async def test_sealed(real: OpenBao, client: VaultClient) -> None:
    real.seal()
    assert (await failure(client)).reason == "VAULT_SEALED"
    problem = client.problem()
    assert problem is not None
    assert (problem.reason, problem.hint) == ("VAULT_SEALED", "unseal it")
    real.unseal()
    await recovers(client)


async def test_stopped_and_started_again(real: OpenBao, client: VaultClient) -> None:
    real.stop()
    error = await failure(client)
    assert (error.reason, "refused" in error.detail.lower()) == ("VAULT_UNREACHABLE", True)
    real.start()
    await eventually(lambda: (p := client.problem()) is not None and p.reason == "VAULT_SEALED")
    real.unseal()
    await recovers(client)


async def test_hanging_costs_one_timeout_and_no_more(real: OpenBao, client: VaultClient) -> None:
    """Many that ask at once wait for the same timeout; who asks later is told at once. The event loop goes on."""
    real.suspend()
    try:
        began, longest = time.monotonic(), asyncio.create_task(longest_pause(5 * TIMEOUT_SECONDS))
        errors = await asyncio.gather(*(failure(client) for _ in range(50)))
        assert time.monotonic() - began < 3 * TIMEOUT_SECONDS
        assert {error.reason for error in errors} == {"VAULT_TIMEOUT"}
        began = time.monotonic()
        for _ in range(20):
            assert (await failure(client)).reason == "VAULT_TIMEOUT"
        assert time.monotonic() - began < TIMEOUT_SECONDS / 2
        with pytest.raises(Unavailable):
            await asyncio.to_thread(client.write_blocking, "transit/keys/a", {})
        assert await longest < 0.25
    finally:
        real.resume()
    await recovers(client)


async def longest_pause(seconds: float) -> float:
    """How long the event loop at most did not run."""
    longest, began = 0.0, time.monotonic()
    before = began
    while before < began + seconds:
        await asyncio.sleep(0.01)
        now = time.monotonic()
        longest, before = max(longest, now - before - 0.01), now
    return longest


async def test_a_revoked_token_is_replaced_by_one_new_log_in(real: OpenBao, client: VaultClient) -> None:
    before = logins(real)
    real.call("POST", "auth/token/revoke-accessor", {"accessor": newest_accessor(real)})
    answers = await asyncio.gather(*(client.read("transit/keys/a") for _ in range(20)), return_exceptions=True)
    assert [a for a in answers if not isinstance(a, dict)] == []
    assert logins(real) - before == 0  # one gone, one new
    assert client.problem() is None


def accessors(bao: OpenBao) -> dict[str, int]:
    """Of tokens that came from AppRole → when they were made."""
    found = {}
    for accessor in bao.call("GET", "auth/token/accessors?list=true")["data"]["keys"]:
        data = bao.call("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        if data["path"] == "auth/approle/login":
            found[accessor] = data["creation_time"]
    return found


def logins(bao: OpenBao) -> int:
    return len(accessors(bao))


def newest_accessor(bao: OpenBao) -> str:
    found = accessors(bao)
    return max(found, key=lambda accessor: found[accessor])


async def test_a_permission_removed_is_a_denial_until_it_is_given_back(real: OpenBao, client: VaultClient) -> None:
    allow(real, "signer", {})
    for _ in range(10):
        with pytest.raises(Denied) as caught:
            await client.read("transit/keys/a")
        assert caught.value.reason == "VAULT_DENIED"
    assert client.problem() is None  # Vault is there and knows us
    assert logins(real) <= 2
    allow(real, "signer", KEYS)
    await recovers(client)


async def test_a_new_token_in_the_file_is_taken_up_after_a_restart(
    real: OpenBao, connect: Connect, tmp_path: Path
) -> None:
    allow(real, "signer", KEYS)
    path = tmp_path / "token"
    old = make_token(real, "signer", ttl="1h")
    path.write_text(old)
    client = await connect(real, {"token_file": str(path)}, timeout_seconds=TIMEOUT_SECONDS)
    await client.write("transit/keys/a", {"type": "ecdsa-p256"})
    revoke_token(real, old)
    real.restart()
    await eventually(lambda: (p := client.problem()) is not None and p.reason == "VAULT_LOGIN_FAILED", seconds=10)
    assert (await failure(client)).reason == "VAULT_LOGIN_FAILED"
    path.write_text(make_token(real, "signer", ttl="1h"))
    await recovers(client)


async def test_one_that_is_away_at_the_start_is_found_later(real: OpenBao, connect: Connect, tmp_path: Path) -> None:
    allow(real, "signer", KEYS)
    (tmp_path / "token").write_text(make_token(real, "signer", ttl="1h"))
    real.stop()
    client = await connect(real, {"token_file": str(tmp_path / "token")}, start=False)
    with pytest.raises(Unavailable) as caught:
        await client.start()
    assert caught.value.reason == "VAULT_UNREACHABLE"
    real.start()
    real.unseal()
    await recovers(client)
