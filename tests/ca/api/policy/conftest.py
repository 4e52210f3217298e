"""A server with callers of every right over policies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.ca.api.policy.http import Client
from tests.support.server import Identity, RunningServer, running_server

ID = "spiffe://example.org"


def policy(name: str = "orders", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    """An AuthorizationPolicy that lets the web in, unless `spec` says otherwise."""
    rules = [{"from": [{"source": {"principals": ["example.org/ns/shop/sa/web"]}}]}]
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec or {"rules": rules},
    }


def workload(name: str = "orders", namespace: str = "shop") -> dict[str, Any]:
    """A Workload object."""
    return {
        "apiVersion": "burgee.io/v1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"spiffeId": f"{ID}/ns/{namespace}/sa/{name}"},
    }


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server(policy={"admins": [f"{ID}/policy-admin"]}) as running:
        yield running


@pytest.fixture
def local(server: RunningServer) -> Client:
    """Over the admin socket."""
    return Client(server)


GRANTS: dict[str, dict[str, Any]] = {
    "admin": {"role": "admin"},
    "author": {"role": "author", "namespaces": ["shop"]},
    "reader": {"role": "reader", "namespaces": ["shop"]},
    "all-reader": {"role": "reader", "namespaces": ["*"]},
}


class Callers:
    """Clients by name, each with its SVID and its grant: `first` is an admin by configuration."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._identities: dict[str, Identity] = {}

    async def __call__(self, name: str) -> Client:
        if name == "local":
            return Client(self._server)
        if name == "anonymous":
            return Client(self._server, anonymous=True)
        if name not in self._identities:
            path = "/policy-admin" if name == "first" else f"/{name}"
            self._identities[name] = await self._server.mint(path)
            if name in GRANTS:
                grant = {"spiffe_id": f"{ID}/{name}", **GRANTS[name]}
                made = await Client(self._server)("PUT", f"/grants/{name}", grant)
                assert made.status == 201, made.data
        return Client(self._server, self._identities[name])


@pytest.fixture
def callers(server: RunningServer) -> Callable[[str], Any]:
    return Callers(server)
