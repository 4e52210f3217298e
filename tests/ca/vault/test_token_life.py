"""A token's life: renewed before it ends, replaced before its maximal life, never forgotten at Vault."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ca.runtime.clock import SystemClock
from ca.runtime.metrics import REGISTRY
from ca.vault.client import VaultClient
from ca.vault.token import Token
from tests.ca.vault.conftest import Connect, config
from tests.ca.vault.test_outages import accessors
from tests.support.openbao import OpenBao, openbao
from tests.support.openbao_mounts import enable_auth, make_approle, make_token, write_policy
from tests.support.server import eventually

A_TOKEN = Token(value="t", ttl_seconds=100, first_ttl_seconds=100, renewable=True, ours=True, since=1000.0)


def test_a_token_is_due_at_a_share_of_its_life() -> None:
    assert (A_TOKEN.due_at(0.6), A_TOKEN.ends_at) == (1060.0, 1100.0)


def test_a_token_that_lives_for_ever_is_never_due() -> None:
    for_ever = A_TOKEN.renewed(ttl_seconds=0, at=1.0)
    assert (for_ever.due_at(0.6), for_ever.ends_at, for_ever.capped) == (None, None, False)


@pytest.mark.parametrize(("ttl_seconds", "capped"), [(100, False), (50, False), (49, True), (1, True)])
def test_renewals_that_bring_little_show_the_maximal_life(ttl_seconds: int, capped: bool) -> None:
    assert A_TOKEN.renewed(ttl_seconds=ttl_seconds, at=1060.0).capped is capped


def test_a_token_is_not_shown() -> None:
    assert "value" not in repr(A_TOKEN)


@pytest.fixture(scope="module")
def bao() -> Any:
    with openbao() as server:
        enable_auth(server, "approle")
        write_policy(server, "reader", {"sys/mounts": ["read"]})
        yield server


def approle(bao: OpenBao, directory: Path, role: str, **options: Any) -> dict[str, Any]:
    role_id, secret_id = make_approle(bao, role, "reader", **options)
    (directory / "secret").write_text(secret_id)
    return {"approle": {"role_id": role_id, "secret_id_file": str(directory / "secret")}}


async def log_in(bao: OpenBao, connect: Connect, directory: Path, role: str, **options: Any) -> VaultClient:
    return await connect(bao, approle(bao, directory, role, **options))


async def works_for(client: VaultClient, seconds: float) -> None:
    """Without one failure."""
    async with asyncio.timeout(seconds + 5):
        for _ in range(int(seconds * 10)):
            assert await client.read("sys/mounts")
            await asyncio.sleep(0.1)


@pytest.mark.real("OpenBao")
async def test_a_token_is_renewed_for_longer_than_it_would_live(bao: OpenBao, connect: Connect, tmp_path: Path) -> None:
    client = await log_in(bao, connect, tmp_path, "periodic", token_period="2s")
    (accessor,) = accessors(bao)
    await works_for(client, 5)
    assert list(accessors(bao)) == [accessor]
    (ends,) = [
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "burgee_vault_token_not_after_seconds" and sample.labels["purpose"] == "test"
    ]
    data = bao.call("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
    assert ends == pytest.approx(datetime.fromisoformat(data["expire_time"][:19] + "+00:00").timestamp(), abs=2)


@pytest.mark.real("OpenBao")
async def test_a_token_near_its_maximal_life_is_replaced_and_the_old_one_revoked(
    bao: OpenBao, connect: Connect, tmp_path: Path
) -> None:
    client = await log_in(bao, connect, tmp_path, "bounded", token_ttl="2s", token_max_ttl="4s")
    before = set(accessors(bao))
    await works_for(client, 9)
    # Between two of them there may be none for a moment.
    await eventually(lambda: len(set(accessors(bao)) - before) == len(accessors(bao)) == len(before))


@pytest.mark.real("OpenBao")
async def test_a_token_that_cannot_be_renewed_is_replaced(bao: OpenBao, connect: Connect, tmp_path: Path) -> None:
    client = await log_in(bao, connect, tmp_path, "batch", token_ttl="4s", token_type="batch")
    await works_for(client, 9)


@pytest.mark.real("OpenBao")
async def test_a_closed_client_leaves_only_the_token_that_somebody_else_made(bao: OpenBao, tmp_path: Path) -> None:
    before = set(accessors(bao))
    ours = VaultClient(config(bao, approle(bao, tmp_path, "closed")), clock=SystemClock(), purpose="test")
    await ours.start()
    assert len(accessors(bao)) == len(before) + 1
    await ours.close()
    assert set(accessors(bao)) == before
    token = make_token(bao, "reader", ttl="1h")
    (tmp_path / "token").write_text(token)
    theirs = VaultClient(config(bao, {"token_file": str(tmp_path / "token")}), clock=SystemClock(), purpose="test")
    await theirs.start()
    await theirs.close()
    assert bao.call("GET", "auth/token/lookup-self", token=token)["data"]["ttl"] > 0


@pytest.mark.real("OpenBao")
async def test_a_token_of_somebody_else_is_renewed(bao: OpenBao, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(make_token(bao, "reader", ttl="2s", explicit_max_ttl="1h"))
    client = await connect(bao, {"token_file": str(tmp_path / "token")})
    await works_for(client, 4)
