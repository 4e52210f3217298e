"""What every key manager promises (ca.ports.KeyManager), asked of each one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca.errors import AlreadyExists, InvalidArgument
from ca.keys import disk, memory
from ca.ports import KeyManager, KeyManagerPlugin, KeyType, Signer
from tests.support.authority_host import authority_host

PLUGINS: tuple[KeyManagerPlugin, ...] = (memory.plugin, disk.plugin)
QUICK_TYPES = (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)


@pytest.fixture(params=PLUGINS, ids=lambda plugin: plugin.name)
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> KeyManager:
    plugin: KeyManagerPlugin = request.param
    made: KeyManager = plugin.manager(plugin.config(), authority_host(tmp_path))
    return made


def verify(signer: Signer, signature: bytes, data: bytes) -> None:
    key = load_der_public_key(signer.public_key_der)
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        digest = hashes.SHA384() if signer.key_type == KeyType.EC_P384 else hashes.SHA256()
        key.verify(signature, data, ec.ECDSA(digest))


@pytest.mark.parametrize("key_type", QUICK_TYPES)
async def test_a_generated_key_signs_with_the_digest_of_its_type(manager: KeyManager, key_type: KeyType) -> None:
    signer = await manager.generate("x509-CA-A", key_type)
    assert (signer.key_id, signer.key_type) == ("x509-CA-A", key_type)
    verify(signer, signer.sign(b"data"), b"data")


@pytest.mark.parametrize("key_type", QUICK_TYPES)
async def test_a_key_is_found_again(manager: KeyManager, key_type: KeyType) -> None:
    made = await manager.generate("k", key_type)
    found = await manager.get("k")
    assert found is not None
    assert (found.key_id, found.key_type, found.public_key_der) == ("k", key_type, made.public_key_der)
    verify(made, found.sign(b"data"), b"data")


async def test_an_unknown_key_is_none(manager: KeyManager) -> None:
    assert await manager.get("nobody") is None
    assert list(await manager.list()) == []


async def test_an_id_in_use_is_refused_and_its_key_stays(manager: KeyManager) -> None:
    made = await manager.generate("k", KeyType.EC_P256)
    with pytest.raises(AlreadyExists):
        await manager.generate("k", KeyType.EC_P384)
    found = await manager.get("k")
    assert found is not None
    assert found.public_key_der == made.public_key_der


async def test_of_many_at_once_one_gets_the_id(manager: KeyManager) -> None:
    made = await asyncio.gather(*(manager.generate("k", KeyType.EC_P256) for _ in range(10)), return_exceptions=True)
    winners = [one for one in made if not isinstance(one, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(one, AlreadyExists) for one in made if isinstance(one, BaseException))
    found = await manager.get("k")
    assert found is not None
    assert found.public_key_der == winners[0].public_key_der
    assert list(await manager.list()) == ["k"]


async def test_keys_are_listed_and_deleted(manager: KeyManager) -> None:
    for key_id in ("b", "a", "c.d-e_F9"):
        await manager.generate(key_id, KeyType.EC_P256)
    assert sorted(await manager.list()) == ["a", "b", "c.d-e_F9"]
    await manager.delete("b")
    assert sorted(await manager.list()) == ["a", "c.d-e_F9"]
    assert await manager.get("b") is None
    await manager.generate("b", KeyType.EC_P256)


async def test_deleting_what_is_not_there_is_fine(manager: KeyManager) -> None:
    await manager.delete("nobody")


async def test_two_keys_differ(manager: KeyManager) -> None:
    one, two = [await manager.generate(key_id, KeyType.EC_P256) for key_id in "ab"]
    assert one.public_key_der != two.public_key_der


Call = Callable[[KeyManager, str], Awaitable[object]]


@pytest.mark.parametrize(
    "key_id", ["", ".", "..", ".hidden", "a/b", "../a", "a\x00", "a\n", "ä", "-a", "a b", "x" * 101]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda manager, key_id: manager.generate(key_id, KeyType.EC_P256),
        lambda manager, key_id: manager.get(key_id),
        lambda manager, key_id: manager.delete(key_id),
    ],
    ids=["generate", "get", "delete"],
)
async def test_ids_that_could_not_name_a_file_are_refused(manager: KeyManager, call: Call, key_id: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call(manager, key_id)
    assert caught.value.reason == "KEY_ID"


async def test_keys_of_this_machine_are_not_remote(manager: KeyManager) -> None:
    assert manager.remote is False
