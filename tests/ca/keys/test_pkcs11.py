"""What is particular to keys in an HSM; SoftHSM stands for one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from ca.errors import BurgeeError, ConfigError, FailedPrecondition, Unavailable
from ca.keys import pkcs11 as plugin_module
from ca.keys.pkcs11 import Pkcs11KeyManager, _point, plugin
from ca.keys.pkcs11_module import pkcs11_module
from ca.ports import BatchSigner, KeyType
from ca.runtime.config import from_values
from tests.contracts.test_key_manager import verify
from tests.support.authority_host import authority_host
from tests.support.libcrypto import forget_errors
from tests.support.softhsm import PIN, SoftHsmToken, softhsm_token

pytestmark = pytest.mark.real("SoftHSM")


@pytest.fixture
def token() -> Iterator[SoftHsmToken]:
    yield softhsm_token()
    forget_errors()


@pytest.fixture
async def manager(token: SoftHsmToken, tmp_path: Path) -> AsyncIterator[Pkcs11KeyManager]:
    made = make(token.config(tmp_path / "pin"), tmp_path)
    await made.start()
    yield made
    await made.close()


def make(values: dict[str, Any], tmp_path: Path) -> Pkcs11KeyManager:
    config = from_values(values, plugin.config, name="keys.config")
    made = plugin.manager(config, authority_host(tmp_path))
    assert isinstance(made, Pkcs11KeyManager)
    return made


def private_key(manager: Pkcs11KeyManager, key_id: str) -> Any:
    import pkcs11

    name = manager._names.name(key_id)
    with manager._token.session() as session:
        return next(
            iter(
                session.get_objects(
                    {pkcs11.Attribute.LABEL: name, pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}
                )
            )
        )


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048])
async def test_a_key_cannot_be_read(manager: Pkcs11KeyManager, key_type: KeyType) -> None:
    import pkcs11

    await manager.generate("k", key_type)
    key = private_key(manager, "k")
    assert key[pkcs11.Attribute.SENSITIVE]
    assert not key[pkcs11.Attribute.EXTRACTABLE]
    secret = pkcs11.Attribute.VALUE if key_type == KeyType.EC_P256 else pkcs11.Attribute.PRIVATE_EXPONENT
    with pytest.raises(pkcs11.AttributeSensitive):
        _ = key[secret]
    with pytest.raises(pkcs11.AttributeReadOnly):
        key[pkcs11.Attribute.EXTRACTABLE] = True


async def test_a_key_that_could_have_left_is_not_signed_with(manager: Pkcs11KeyManager) -> None:
    import pkcs11

    with manager._token.session() as session:
        session.generate_keypair(
            pkcs11.KeyType.RSA,
            2048,
            store=True,
            label=manager._names.name("k"),
            private_template={pkcs11.Attribute.EXTRACTABLE: True},
        )
    with pytest.raises(FailedPrecondition) as caught:
        await manager.get("k")
    assert caught.value.reason == "PKCS11_KEY_EXPOSED"


async def test_a_wrong_pin_is_said_and_never_tried_again(token: SoftHsmToken, tmp_path: Path) -> None:
    values = token.config(tmp_path / "pin")
    (tmp_path / "pin").write_text("999999")
    made = make(values, tmp_path)
    for attempt in (made.start, lambda: made.get("k"), made.start):
        with structlog.testing.capture_logs() as logs, pytest.raises(ConfigError) as caught:
            await attempt()
        assert caught.value.reason == "PKCS11_PIN"
        assert "999999" not in f"{caught.value.detail} {logs}"
        (tmp_path / "pin").write_text("999998")
    assert made.problem() is not None
    tries: list[float] = []
    made._token._pin = lambda: str(tries.append(0.0))
    made._token._looked_at = 0.0
    made._token.reopen()
    with pytest.raises(ConfigError):
        await made.get("k")
    assert not tries


@pytest.mark.parametrize(("content", "mode"), [("", 0o600), ("\n", 0o600), (PIN, 0o644)])
async def test_a_pin_file_that_is_empty_or_open_to_others_is_refused(
    token: SoftHsmToken, tmp_path: Path, content: str, mode: int
) -> None:
    values = token.config(tmp_path / "pin")
    (tmp_path / "pin").write_text(content)
    (tmp_path / "pin").chmod(mode)
    with pytest.raises(BurgeeError) as caught:
        await make(values, tmp_path).start()
    assert caught.value.reason in ("PKCS11_PIN", "NOT_PRIVATE")


async def test_the_pin_can_come_from_the_environment(
    token: SoftHsmToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = token.config(tmp_path / "pin")
    del values["pin_file"]
    with pytest.raises(ConfigError, match="pin_file and pin_env"):
        make(values, tmp_path)
    made = make({**values, "pin_env": "TEST_HSM_PIN"}, tmp_path)
    with pytest.raises(ConfigError, match="TEST_HSM_PIN"):
        await made.start()
    monkeypatch.setenv("TEST_HSM_PIN", PIN)
    again = make({**values, "pin_env": "TEST_HSM_PIN"}, tmp_path)
    await again.start()
    await again.generate("k", KeyType.EC_P256)
    await again.close()


@pytest.mark.parametrize("file", ["/nowhere/lib.so", "/etc/passwd"])
async def test_what_is_no_module_is_refused(token: SoftHsmToken, tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await make({**token.config(tmp_path / "pin"), "module": file}, tmp_path).start()
    assert caught.value.reason == "PKCS11_MODULE"


async def test_a_token_that_is_not_there_is_looked_for(token: SoftHsmToken, tmp_path: Path) -> None:
    made = make({**token.config(tmp_path / "pin"), "token_label": "nobody"}, tmp_path)
    with pytest.raises(Unavailable) as caught:
        await made.start()
    assert caught.value.reason == "PKCS11_TOKEN_GONE"
    assert made.problem() is not None


async def test_a_token_pulled_out_and_put_back(token: SoftHsmToken, manager: Pkcs11KeyManager) -> None:
    signer = await manager.generate("k", KeyType.EC_P256)
    watching = asyncio.create_task(manager.run())
    token.pull_out()
    try:
        with pytest.raises(Unavailable) as caught:
            await asyncio.to_thread(signer.sign, b"data")
        assert caught.value.reason in ("PKCS11_TOKEN_GONE", "PKCS11_KEY_MISSING")
        assert manager.problem() is not None
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(Unavailable):
                await asyncio.to_thread(signer.sign, b"data")
        assert time.monotonic() - began < 5
        await asyncio.sleep(2.5)  # found again without its keys, it is still not well
        assert manager.problem() is not None
    finally:
        token.put_back()
    for _ in range(200):
        if manager.problem() is None:
            break
        await asyncio.sleep(0.05)
    assert manager.problem() is None
    verify(signer, await asyncio.to_thread(signer.sign, b"data"), b"data")
    watching.cancel()


async def test_what_concerns_the_question_alone_leaves_the_token_in_use(manager: Pkcs11KeyManager) -> None:
    signer = await manager.generate("k", KeyType.EC_P256)
    import pkcs11

    def nonsense() -> None:
        with manager._token.session() as session:
            raise pkcs11.MechanismInvalid(session)

    with pytest.raises(Unavailable) as caught:
        await asyncio.to_thread(nonsense)
    assert caught.value.reason == "PKCS11_REFUSED"
    assert manager.problem() is None
    verify(signer, await asyncio.to_thread(signer.sign, b"data"), b"data")


async def test_no_more_sessions_than_allowed(token: SoftHsmToken, tmp_path: Path) -> None:
    made = make({**token.config(tmp_path / "pin"), "sessions": 2}, tmp_path)
    signer = await made.generate("k", KeyType.EC_P256)
    most = 0
    inside = 0
    lock = threading.Lock()
    session_of = made._token.session

    def counted() -> None:
        nonlocal most, inside
        with session_of():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    await asyncio.gather(*(asyncio.to_thread(counted) for _ in range(12)))
    assert most == 2
    assert isinstance(signer, BatchSigner)
    await made.close()


async def test_without_its_public_half_a_key_is_not_used(manager: Pkcs11KeyManager) -> None:
    await manager.generate("k", KeyType.EC_P256)
    with manager._token.session() as session:
        for public in plugin_module._find(session, manager._names.name("k"), private=False):
            public.destroy()
    with pytest.raises(FailedPrecondition) as caught:
        await manager.get("k")
    assert caught.value.reason == "PKCS11_KEY"


def test_points_with_and_without_their_wrapping() -> None:
    point = b"\x04" + bytes(range(64))
    assert _point(b"\x04\x41" + point) == point
    assert _point(point) == point


def test_a_module_is_loaded_once(token: SoftHsmToken) -> None:
    assert pkcs11_module(str(token.module)) is pkcs11_module(str(token.module))
