"""What every key manager promises (ca.ports.KeyManager), asked of each one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca.errors import AlreadyExists, BurgeeError, InvalidArgument
from ca.ports import BatchSigner, Connected, KeyManager, KeyType, Signer
from tests.contracts.key_managers import CASES, Case, Place

QUICK_TYPES = (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)


@pytest.fixture(params=CASES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    case: Case = request.param
    with ExitStack() as stack:
        place = Place(case, tmp_path, stack)
        yield place
        await place.close_all()


@pytest.fixture
async def manager(place: Place) -> KeyManager:
    return await place.open()


def verify(signer: Signer, signature: bytes, data: bytes) -> None:
    key = load_der_public_key(signer.public_key_der)
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        digest = hashes.SHA384() if signer.key_type == KeyType.EC_P384 else hashes.SHA256()
        key.verify(signature, data, ec.ECDSA(digest))


@pytest.mark.parametrize("key_type", KeyType)
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


async def test_a_manager_says_whether_its_keys_are_elsewhere(place: Place, manager: KeyManager) -> None:
    assert manager.remote is place.case.remote


async def test_one_key_signs_in_many_threads_at_once(manager: KeyManager) -> None:
    signer = await manager.generate("k", KeyType.EC_P256)
    batch = [f"data {number}".encode() for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        signatures = list(pool.map(signer.sign, batch))
    for data, signature in zip(batch, signatures, strict=True):
        verify(signer, signature, data)


async def test_many_keys_are_made_and_found_at_once(manager: KeyManager) -> None:
    ids = [f"k-{number}" for number in range(20)]
    made = await asyncio.gather(*(manager.generate(key_id, KeyType.EC_P256) for key_id in ids))
    found = await asyncio.gather(*(manager.get(key_id) for key_id in ids))
    assert [signer.public_key_der for signer in made] == [signer.public_key_der for signer in found if signer]
    assert sorted(await manager.list()) == sorted(ids)


@pytest.mark.parametrize("key_type", QUICK_TYPES)
async def test_a_batch_is_signed_in_its_order(manager: KeyManager, key_type: KeyType) -> None:
    signer = await manager.generate("k", key_type)
    if not isinstance(signer, BatchSigner):
        return  # one by one is all that it promises
    batch = [f"data {number}".encode() for number in range(600)]
    signatures = await asyncio.to_thread(signer.sign_many, batch)
    for data, signature in zip(batch, signatures, strict=True):
        assert not isinstance(signature, BurgeeError)
        verify(signer, signature, data)
    assert list(await asyncio.to_thread(signer.sign_many, [])) == []


async def test_keys_outlive_the_manager(place: Place, manager: KeyManager) -> None:
    made = await manager.generate("k", KeyType.EC_P256)
    before = made.sign(b"data")
    await place.close(manager)
    again = await place.open()
    if not place.case.durable:
        assert await again.get("k") is None
        return
    assert list(await again.list()) == ["k"]
    found = await again.get("k")
    assert found is not None
    assert (found.public_key_der, found.key_type) == (made.public_key_der, made.key_type)
    verify(found, before, b"data")
    verify(made, found.sign(b"more"), b"more")
    with pytest.raises(AlreadyExists):
        await again.generate("k", KeyType.EC_P256)


@pytest.mark.parametrize(
    ("trust_domain", "server"),
    [
        ("example.org", "s2"),
        ("other.org", "s1"),
        ("example.org", "s"),
        ("example.org-s1", "s"),
        ("example.org", "s1-k"),
    ],
)
async def test_keys_of_other_servers_are_neither_seen_nor_touched(
    place: Place, manager: KeyManager, trust_domain: str, server: str
) -> None:
    """Where servers share a place; names that are glued together differently are names of others, too."""
    if not place.case.shared:
        return
    await manager.generate("k", KeyType.EC_P256)
    other = await place.open(trust_domain=trust_domain, server=server)
    assert list(await other.list()) == []
    assert await other.get("k") is None
    theirs = await other.generate("k", KeyType.EC_P384)
    await manager.delete("k")
    found = await other.get("k")
    assert found is not None
    assert found.public_key_der == theirs.public_key_der
    assert list(await manager.list()) == []


async def test_a_connected_one_is_well(manager: KeyManager) -> None:
    if isinstance(manager, Connected):
        assert manager.problem() is None
