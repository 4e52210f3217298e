"""A book of policies on a store of its own, without a server around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ca.identity.spiffe_id import SpiffeId
from ca.runtime.config import from_values
from ca.runtime.server_config import ServerConfig
from ca.service.follower import Follower
from ca.service.peers import AgentTable
from ca.service.policy.book import PolicyBook
from ca.service.policy.grants import Rights
from ca.service.policy.made import policy_book
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store
from policy.book_values import Change, Key
from tests.support.clock import FakeClock
from tests.support.stores import NOW, TD

ROOT = "istio-system"
ADMIN = Rights(is_admin=True, root_namespace=ROOT, exempt=True)


def author(*namespaces: str) -> Rights:
    return Rights(is_admin=False, root_namespace=ROOT, writes=frozenset(namespaces))


def key(name: str, namespace: str = "shop", kind: str = "AuthorizationPolicy") -> Key:
    return Key(kind=kind, namespace=namespace, name=name)


def body(name: str, namespace: str = "shop", *, kind: str = "AuthorizationPolicy", **spec: Any) -> dict[str, Any]:
    version = "burgee.io/v1" if kind == "Workload" else "security.istio.io/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec}


def allow(name: str, principal: str = "a", namespace: str = "shop") -> dict[str, Any]:
    """Lets one principal in."""
    source = {"source": {"principals": [f"example.org/{principal}"]}}
    return body(name, namespace, action="ALLOW", rules=[{"from": [source]}])


def workload(name: str, spiffe_id: str, namespace: str = "shop", **labels: str) -> dict[str, Any]:
    made = body(name, namespace, kind="Workload", spiffeId=spiffe_id)
    made["metadata"]["labels"] = labels
    return made


def put(made: dict[str, Any], **more: Any) -> Change:
    metadata = made["metadata"]
    return Change(key=key(metadata["name"], metadata["namespace"], made["kind"]), body=made, **more)


def gone(name: str, namespace: str = "shop", **more: Any) -> Change:
    return Change(key=key(name, namespace), body=None, **more)


class Lab:
    """`book` with everything that it needs; a follower that follows when told to."""

    def __init__(self, store: Store, follower: Follower, index: AuthorizedIndex, clock: FakeClock) -> None:
        self.store, self.follower, self.index, self.clock = store, follower, index, clock
        self.book: PolicyBook

    async def write(self, *changes: Change, rights: Rights = ADMIN, actor: str = "uid:0", **more: Any) -> Any:
        return await self.book.write(changes, actor=actor, rights=rights, **more)


@asynccontextmanager
async def lab(url: str, *, policy: dict[str, Any] | None = None, clock: FakeClock | None = None) -> AsyncIterator[Lab]:
    """`policy` is the block of the server's configuration."""
    clock = clock or FakeClock(NOW)
    values = {"trust_domain": TD.name, "data_dir": "/nowhere", "policy": policy or {}}
    store = await Store.open(url, clock=clock)
    try:
        index = AuthorizedIndex(TD, clock.now)
        follower = Follower(store=store, index=index, agents=AgentTable(store.agents), trust=Trust(TD))
        await follower.load()
        made = Lab(store, follower, index, clock)
        config = from_values(values, ServerConfig)
        made.book = await policy_book(config, store=store, index=index, clock=clock, server="s1")
        follower.on_applied(made.book.held.on_applied)
        yield made
    finally:
        await store.close()


def url_in(directory: Path) -> str:
    return f"sqlite:///{directory}/store.sqlite3"


def spiffe_id(path: str) -> SpiffeId:
    return SpiffeId(TD, path)
