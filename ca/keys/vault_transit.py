"""Private keys in a Transit engine of Vault or OpenBao: made there, used there, and never seen here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from ca.errors import BurgeeError, ConfigError, Denied, NotFound, Unavailable
from ca.keys.key_id import check_key_id, in_use
from ca.keys.shared_names import SharedNames
from ca.keys.transit_key import TYPES, read_creation_time, read_transit_key
from ca.keys.transit_signer import TransitSigner
from ca.ports import AuthorityHost, Clock, KeyManagerPlugin, KeyType, Signer
from ca.runtime import log
from ca.vault.client import VaultClient
from ca.vault.config import Name, VaultConfig

T = TypeVar("T")

logger = log.get("vault-transit")

PROBE = b"burgee asks whether it may sign"
"""No certificate and no token begins so; only its hash reaches Vault."""

PROBE_SECONDS = 2.0

FORGET_SECONDS = 600.0
"""A key that nobody has signed with for so long is no problem, whether it may or not."""


class VaultTransitConfig(VaultConfig):
    """Options of the vault_transit key manager."""

    mount: Name = "transit"
    """Where the Transit engine is mounted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    signer: TransitSigner
    error: BurgeeError
    asked_at: float


class TransitKeyManager:
    """Implements ca.ports.KeyManager, ca.ports.Connected and ca.ports.Dated.

    Keys are made not exportable and without plaintext backup; one that is not so any more is not signed with. Keys of
    other servers and other programs in the same engine are neither seen nor touched.
    """

    remote = True

    def __init__(
        self,
        vault: VaultClient,
        names: SharedNames,
        *,
        mount: str,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives 0 to 1."""
        self._vault = vault
        self._names = names
        self._mount = mount
        self._clock = clock
        self._jitter = jitter
        self._making = asyncio.Lock()
        self._refusals: dict[str, _Refusal] = {}

    async def generate(self, key_id: str, key_type: KeyType) -> Signer:
        check_key_id(key_id)
        path = self._path(key_id)
        async with self._making:  # Transit takes a second "make" of one name for granted
            if await _usable(self._vault.read(path)) is not None:
                raise in_use(key_id)
            wanted = {"type": TYPES[key_type], "exportable": False, "allow_plaintext_backup": False, "derived": False}
            await _usable(self._vault.write(path, wanted, slow=True))
            signer = await self.get(key_id)
        if signer is None or signer.key_type != key_type:
            raise Unavailable(f"vault did not make the key `{key_id}` as it was asked to", reason="VAULT_ANSWER")
        return signer

    async def get(self, key_id: str) -> Signer | None:
        check_key_id(key_id)
        data = await _usable(self._vault.read(self._path(key_id)))
        if data is None:
            return None
        key = read_transit_key(self._names.name(key_id), data)
        return TransitSigner(
            key_id,
            key,
            vault=self._vault,
            mount=self._mount,
            on_outcome=self._note,
            problem=lambda: self._problem_of(key_id),
        )

    async def list(self) -> Sequence[str]:
        found = await _usable(self._vault.list(f"{self._mount}/keys"))
        return sorted(key_id for name in found if (key_id := self._names.key_id(name)) is not None)

    async def delete(self, key_id: str) -> None:
        check_key_id(key_id)
        self._refusals.pop(key_id, None)
        path = self._path(key_id)
        if await _usable(self._vault.read(path)) is None:
            return
        await _usable(self._vault.write(f"{path}/config", {"deletion_allowed": True}))
        await _usable(self._vault.delete(path))

    async def made_at(self, key_id: str) -> datetime | None:
        """For ca.ports.Dated; None also where Vault does not say."""
        check_key_id(key_id)
        data = await _usable(self._vault.read(self._path(key_id)))
        return None if data is None else read_creation_time(data)

    async def start(self) -> None:
        """Raises ConfigError for a mount that is no Transit engine, or that our token may not use (VAULT_MOUNT)."""
        await self._vault.start()
        try:
            mount = await self._vault.read(f"sys/internal/ui/mounts/{self._mount}")
        except Denied:
            mount = None
        if mount is None or mount.get("type") != "transit":
            raise ConfigError(
                f"there is no Transit engine at `{self._mount}` that this server's token may use",
                reason="VAULT_MOUNT",
                hint="enable it, or set `mount`; and give the token a policy for it",
            )
        try:
            await self._vault.list(f"{self._mount}/keys")
        except Denied as error:
            raise ConfigError(error.detail, reason=error.reason, hint=error.hint) from error

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._vault.run())
            tasks.create_task(self._ask_again())

    async def close(self) -> None:
        await self._vault.close()

    def problem(self) -> BurgeeError | None:
        refused = next(iter(self._refusals.copy().values()), None)
        return self._vault.problem() or (None if refused is None else refused.error)

    def _problem_of(self, key_id: str) -> BurgeeError | None:
        refusal = self._refusals.get(key_id)
        return self._vault.problem() or (None if refusal is None else refusal.error)

    def _path(self, key_id: str) -> str:
        return f"{self._mount}/keys/{self._names.name(key_id)}"

    def _note(self, signer: TransitSigner, error: BurgeeError | None) -> None:
        """From any thread. A signature that Vault refuses is a problem until it gives one."""
        was = self._refusals.pop(signer.key_id, None)
        if error is not None:
            refusal = _Refusal(signer=signer, error=error, asked_at=self._clock.monotonic())
            self._refusals[signer.key_id] = refusal
            if was is None:
                logger.warning("vault does not sign", key_id=signer.key_id, reason=error.reason, detail=error.detail)
        elif was is not None:
            logger.info("vault signs again", key_id=signer.key_id)

    async def _ask_again(self) -> None:
        """Whether what was refused is granted by now: a server that is not ready may be asked for nothing."""
        while True:
            await self._clock.sleep(PROBE_SECONDS * (0.5 + self._jitter()))
            for key_id, refusal in [*self._refusals.items()]:
                if self._clock.monotonic() - refusal.asked_at > FORGET_SECONDS:
                    self._refusals.pop(key_id, None)
                    continue
                try:
                    await asyncio.to_thread(refusal.signer.sign, PROBE)
                except BurgeeError as error:
                    if key_id in self._refusals:
                        self._refusals[key_id] = replace(refusal, error=error)


async def _usable(call: Awaitable[T]) -> T:
    """To whoever needs a key it is all the same whether Vault is away or denies it."""
    try:
        return await call
    except (Denied, NotFound) as error:
        raise Unavailable(error.detail, reason=error.reason, hint=error.hint) from error


def _manager(config: VaultTransitConfig, host: AuthorityHost) -> TransitKeyManager:
    vault = VaultClient(config, clock=host.clock, purpose="keys")
    return TransitKeyManager(vault, SharedNames.of(host), mount=config.mount, clock=host.clock)


plugin = KeyManagerPlugin(name="vault_transit", config=VaultTransitConfig, manager=_manager)
