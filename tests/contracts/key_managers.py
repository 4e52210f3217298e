"""How each key manager is opened, closed and opened again on what it kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ca.keys import disk, memory, pkcs11, vault_transit
from ca.ports import AuthorityHost, Connected, KeyManager, KeyManagerPlugin
from ca.runtime.config import from_values
from tests.support.authority_host import authority_host
from tests.support.openbao import shared_openbao
from tests.support.softhsm import softhsm_token
from tests.support.transit import new_transit, token_file

Values = Callable[[Path, ExitStack], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`values` makes a place for keys that nothing else uses, and gives the configuration for it. `shared` tells
    whether several servers keep their keys in the same place, `durable` whether keys outlive the manager."""

    plugin: KeyManagerPlugin
    values: Values = lambda _directory, _stack: {}
    durable: bool = True
    shared: bool = False
    remote: bool = False


def _transit(directory: Path, _stack: ExitStack) -> dict[str, Any]:
    bao = shared_openbao()
    mount, policy = new_transit(bao, "example.org", "other.org")
    return {"address": bao.address, "mount": mount, "auth": token_file(bao, directory / "vault-token", policy)}


def _softhsm(directory: Path, _stack: ExitStack) -> dict[str, Any]:
    return softhsm_token().config(directory / "pin")


CASES = [
    pytest.param(Case(plugin=memory.plugin, durable=False), id="memory"),
    pytest.param(Case(plugin=disk.plugin), id="disk"),
    pytest.param(
        Case(plugin=vault_transit.plugin, values=_transit, shared=True, remote=True),
        id="vault_transit",
        marks=pytest.mark.real("OpenBao"),
    ),
    pytest.param(
        Case(plugin=pkcs11.plugin, values=_softhsm, shared=True, remote=True),
        id="pkcs11",
        marks=pytest.mark.real("SoftHSM"),
    ),
]


class Place:
    """Where one test's keys are; managers come and go."""

    def __init__(self, case: Case, directory: Path, stack: ExitStack) -> None:
        self.case = case
        self._directory = directory
        self._values = case.values(directory, stack)
        self._open: list[KeyManager] = []

    async def open(self, *, trust_domain: str = "example.org", server: str = "s1") -> KeyManager:
        """A manager that has started, of a server that has been here before or not."""
        host: AuthorityHost = authority_host(self._directory, trust_domain=trust_domain, server=server)
        plugin = self.case.plugin
        config = from_values(self._values, plugin.config, name="keys.config")
        manager: KeyManager = plugin.manager(config, host)
        if isinstance(manager, Connected):
            await manager.start()
        self._open.append(manager)
        return manager

    async def close(self, manager: KeyManager) -> None:
        self._open.remove(manager)
        if isinstance(manager, Connected):
            await manager.close()

    async def close_all(self) -> None:
        for manager in [*self._open]:
            await self.close(manager)
