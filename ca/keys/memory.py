"""Private keys that live as long as the process: for tests and for servers that keep nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ca.keys.key_id import check_key_id, in_use
from ca.keys.signer import LocalSigner, generate_private_key
from ca.ports import KeyManagerPlugin, KeyType, Signer
from ca.runtime.config import StrictModel


class MemoryKeysConfig(StrictModel):
    """The memory key manager has no options."""


class MemoryKeyManager:
    """Implements ca.ports.KeyManager. "Durable" means: until the process ends."""

    remote = False

    def __init__(self) -> None:
        self._signers: dict[str, LocalSigner] = {}

    async def generate(self, key_id: str, key_type: KeyType) -> Signer:
        check_key_id(key_id)
        if key_id in self._signers:
            raise in_use(key_id)
        key = await asyncio.to_thread(generate_private_key, key_type)
        signer = self._signers.setdefault(key_id, made := LocalSigner(key_id, key))
        if signer is not made:  # somebody else's key was ready first
            raise in_use(key_id)
        return signer

    async def get(self, key_id: str) -> Signer | None:
        check_key_id(key_id)
        return self._signers.get(key_id)

    async def list(self) -> Sequence[str]:
        return sorted(self._signers)

    async def delete(self, key_id: str) -> None:
        check_key_id(key_id)
        self._signers.pop(key_id, None)


plugin = KeyManagerPlugin(name="memory", config=MemoryKeysConfig, manager=lambda _config, _host: MemoryKeyManager())
