"""A PKCS#11 module leaves errors in the libcrypto that `ssl` uses as well: no thread that speaks TLS ever sees them."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ca.keys.pkcs11 import Pkcs11KeyManager, plugin
from ca.keys.pkcs11_signer import Pkcs11Signer
from ca.keys.pkcs11_token import Pkcs11Token
from ca.ports import KeyType
from ca.runtime.config import from_values
from tests.support.authority_host import authority_host
from tests.support.libcrypto import QuietConnection
from tests.support.softhsm import softhsm_token

pytestmark = pytest.mark.real("SoftHSM")


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Pkcs11KeyManager]:
    config = from_values(softhsm_token().config(tmp_path / "pin"), plugin.config, name="keys.config")
    made = plugin.manager(config, authority_host(tmp_path))
    assert isinstance(made, Pkcs11KeyManager)
    await made.start()
    yield made
    await made.close()


def leave_an_error(session: Any) -> None:
    """As a module does whenever OpenSSL refuses it something."""
    import pkcs11

    public, _ = session.generate_keypair(pkcs11.KeyType.RSA, 2048)
    assert not public.verify(b"x" * 32, b"y" * 256, mechanism=pkcs11.Mechanism.RSA_PKCS)


async def test_what_a_module_leaves_behind_fails_the_next_look_of_tls_in_its_thread(
    manager: Pkcs11KeyManager, tmp_path: Path
) -> None:
    """Else the test below would show nothing."""

    def both() -> None:
        quiet = QuietConnection(tmp_path)
        with manager._token.session() as session:
            leave_an_error(session)
        quiet.look()

    with ThreadPoolExecutor(1) as pool, pytest.raises(ssl.SSLError) as caught:
        await asyncio.get_running_loop().run_in_executor(pool, both)
    assert not isinstance(caught.value, ssl.SSLWantReadError)


async def test_signing_leaves_nothing_in_the_threads_that_ask_for_it(
    manager: Pkcs11KeyManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = await manager.generate("k", KeyType.EC_P256)
    sign = Pkcs11Signer._sign

    def signed(self: Pkcs11Signer, key: Any, data: bytes) -> bytes:
        leave_an_error(key.session)
        return sign(self, key, data)

    monkeypatch.setattr(Pkcs11Signer, "_sign", signed)

    def sign_and_look() -> None:
        quiet = QuietConnection(tmp_path)
        assert signer.sign(b"data")
        quiet.look()

    with pytest.raises(ssl.SSLWantReadError):  # in the event loop's thread
        sign_and_look()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        for where in (None, pool):  # in the pool that everybody shares, and in one of our own
            with pytest.raises(ssl.SSLWantReadError):
                await loop.run_in_executor(where, sign_and_look)


async def test_whatever_the_manager_does_it_does_in_its_own_threads(
    manager: Pkcs11KeyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def watched(name: str) -> None:
        done = getattr(Pkcs11Token, name)

        def recorded(self: Pkcs11Token, *arguments: Any, **named: Any) -> Any:
            seen[name] = threading.current_thread().name
            return done(self, *arguments, **named)

        monkeypatch.setattr(Pkcs11Token, name, recorded)

    for name in ("open", "close", "_borrow", "_give_back"):
        watched(name)
    works: list[Callable[[], Awaitable[Any]]] = [
        manager.start,
        lambda: manager.generate("k", KeyType.EC_P256),
        lambda: manager.get("k"),
        manager.list,
        lambda: manager.delete("k"),
        manager.close,
    ]
    for work in works:
        seen.clear()
        await work()
        assert seen
        assert all(thread.startswith("pkcs11_") for thread in seen.values()), seen
