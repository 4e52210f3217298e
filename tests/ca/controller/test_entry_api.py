"""Entries through the admin API, here and over the network: all of ours, in parts, and nothing of others."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.cli.svid_files import BUNDLE_FILE, CHAIN_FILE, KEY_FILE
from ca.controller import entry_api
from ca.controller.config import ServerConfig
from ca.controller.entry_api import AdminChannel, EntryApi
from ca.errors import BurgeeError, Unavailable
from ca.identity.bundle_pem import format_pem
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from tests.support.server import Identity, RunningServer, entry, running_server


@asynccontextmanager
async def api(**server: str) -> AsyncIterator[EntryApi]:
    channel = AdminChannel(from_values(server, ServerConfig), SystemClock())
    try:
        yield EntryApi(channel, lambda one: one.startswith("ours."))
    finally:
        await channel.close()


def mine(name: str, **fields: Any) -> Any:
    made = entry(f"/{name}", "/spire/agent/x", f"k8s:pod-uid:{name}", **fields)
    made.id = f"ours.{name}"
    return made


async def test_all_of_ours_in_pages_and_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_api, "PAGE", 3)
    async with running_server() as server:
        await server.create(*(entry(f"/t{n}", "/spire/agent/x", f"k8s:ns:{n}") for n in range(5)))
        async with api(admin_socket=str(server.config.admin_socket_path)) as ours:
            outcomes = await ours.create([mine(f"e{n}", dns_names=["b", "a"]) for n in range(8)])
            assert [one.code for one in outcomes] == [0] * 8
            found = await ours.all()
            assert sorted(found) == [f"ours.e{n}" for n in range(8)]
            assert found["ours.e0"].revision_number == 0, "in the form in which they are compared"
            assert list(found["ours.e0"].dns_names) == ["a", "b"]
            (again,) = await ours.create([mine("e1", hint="x")])
            assert (again.code, again.there) == (6, "ours.e1")
            assert [one.code for one in await ours.update([mine("e1", hint="x"), mine("none")])] == [0, 5]
            assert [one.code for one in await ours.delete(["ours.e1", "ours.e1"])] == [0, 5]
            with pytest.raises(ValueError, match="never deleted"):
                await ours.delete(["theirs"])


async def test_a_server_that_is_away_is_asked_again_on_a_new_channel() -> None:
    async with running_server() as server, api(admin_socket=str(server.config.admin_socket_path)) as ours:
        assert await ours.all() == {}
        await server.stop()
        with pytest.raises(Unavailable):
            await ours.all()
        await server.start()
        assert await ours.all() == {}


def write(directory: Path, identity: Identity, server: RunningServer) -> None:
    """As `caadmin svid mint x509 --write` does."""
    directory.mkdir(mode=0o700, exist_ok=True)
    pem = identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / KEY_FILE).touch(mode=0o600)
    (directory / KEY_FILE).write_bytes(pem)
    from ca.cli.mint import pem as chain_pem

    (directory / CHAIN_FILE).write_bytes(chain_pem(list(identity.chain)))
    (directory / BUNDLE_FILE).write_text(format_pem(server.server.trust.own))
    for name in (CHAIN_FILE, BUNDLE_FILE):
        os.chmod(directory / name, 0o644)


async def test_over_the_network_as_an_administrator_whose_files_change(tmp_path: Path) -> None:
    admin = "spiffe://example.org/controller"
    async with running_server(admin_ids=[admin]) as server:
        directory = tmp_path / "svid"
        write(directory, await server.mint("/somebody"), server)
        address = "{}:{}".format(*server.server.address)
        async with api(address=address, svid_dir=str(directory)) as ours:
            with pytest.raises(BurgeeError) as caught:
                await ours.all()
            assert caught.value.code == "PermissionDenied"
            write(directory, await server.mint("/controller"), server)
            assert [one.code for one in await ours.create([mine("a")])] == [0]
            assert [*await ours.all()] == ["ours.a"]


async def test_another_server_is_not_believed(tmp_path: Path) -> None:
    async with running_server() as server, running_server() as other:
        directory = tmp_path / "svid"
        write(directory, await other.mint("/controller"), other)
        address = "{}:{}".format(*server.server.address)
        async with api(address=address, svid_dir=str(directory)) as ours:
            with pytest.raises(BurgeeError) as caught:
                await ours.all()
            assert caught.value.reason != "UNAVAILABLE", "it says why"
