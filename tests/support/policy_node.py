"""A node whose policies a test writes: a real agent in this process, in a thread of its own, below a fake server."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from ca.proto.burgee import node_pb2, policy_pb2
from sds.agent import Agent
from sds.feed import ProxyState
from sds.policy_rollout import rollout
from tests.ca.identity.forge import TD
from tests.sds.fake_server import FakeServer
from tests.sds.node_lab import config_for
from tests.support.pair import until

T = TypeVar("T")
Object = dict[str, Any]


def authorization(name: str, namespace: str = "a", *, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    """An AuthorizationPolicy."""
    selector = {"selector": {"matchLabels": labels}} if labels else {}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**selector, **spec},
    }


def allowing(name: str, namespace: str = "a", *, paths: list[str] | None = None, **more: Any) -> Object:
    """Allows everybody, or everybody some paths."""
    rule = {"to": [{"operation": {"paths": paths}}]} if paths else {}
    return authorization(name, namespace, rules=[rule], **more)


def workload(name: str, path: str, namespace: str = "a", **spec: Any) -> Object:
    """A Workload object."""
    return {
        "apiVersion": "burgee.io/v1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace, "labels": spec.pop("labels", {})},
        "spec": {"spiffeId": str(SpiffeId(TD, path)), "normalized": True, **spec},
    }


def policy_set(revision: int, *objects: Object, keys: dict[str, str] | None = None, **mesh: Any) -> bytes:
    """As a server sends it."""
    message = policy_pb2.PolicySet(revision=revision)
    message.mesh.trust_domains.append(TD.name)
    message.mesh.root_namespace = "root"
    message.mesh.open_namespaces.extend(mesh.get("open_namespaces", ()))
    message.mesh.providers.extend(mesh.get("providers", ()))
    message.namespaces.extend(mesh.get("namespaces", ()))
    for found in objects:
        names = found["metadata"]
        message.objects.add(
            kind=found["kind"], namespace=names["namespace"], name=names["name"], body=json.dumps(found).encode()
        )
    for issuer, jwks in (keys or {}).items():
        message.keys.add(issuer=issuer, jwks=jwks)
    return message.SerializeToString()


class PolicyNode:
    """Server, agent and their loop. `settings` are of the agent's configuration."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.socket = home / "w" / "w.sock"
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="policy-node")
        self.server = FakeServer()
        self.agent: Agent | None = None
        self.revision = 0
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done by the node's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def ask(self, function: Callable[[], T]) -> T:
        """The same for what does not wait."""

        async def call() -> T:
            return function()

        return self.do(call())

    def start(self, *entries: RegistrationEntry) -> None:
        self.server.entries |= {entry.id: entry for entry in entries}
        self.do(self.server.start())
        self.start_agent()

    def start_agent(self) -> None:
        settings = {
            "workload_socket": str(self.socket),
            "admin_socket": {"path": str(self.home / "a" / "a.sock")},
            "workload_attestors": {"unix": {"path": True}},
            "metrics_address": None,
            "attest_interval_seconds": 0.2,
            **self._settings,
        }
        config = config_for(self.home, self.server, **settings)

        async def started() -> Agent:
            agent = Agent(config)
            await agent.start()
            return agent

        agent = self.agent = self.do(started())
        until("the agent is ready", lambda: self.ask(lambda: agent.cache.ready))

    def stop_agent(self) -> None:
        agent, self.agent = self.agent, None
        if agent is not None:
            self.do(agent.close())

    def write(self, *objects: Object, **more: Any) -> int:
        """A revision with these objects, and no others."""
        self.revision += 1
        self.push(policy_set(self.revision, *objects, **more))
        return self.revision

    def push(self, payload: bytes) -> None:
        """A set as it is."""
        self.do(self.server.push_policies(payload))

    @property
    def proxies(self) -> list[ProxyState]:
        """What the agent would tell the server of them."""
        agent = self.agent
        assert agent is not None
        return list(self.ask(lambda: rollout(agent.policies, agent.clients, lambda pid, node: False).proxies))

    def acked(self, revision: int, *, streams: int = 1) -> bool:
        """Whether all proxies have taken a revision over."""
        states = self.proxies
        return len(states) >= streams and all(s.revision == revision and s.state == "acked" for s in states)

    @property
    def last_ack(self) -> node_pb2.Ack | None:
        """The agent's last word on policies."""
        return next((ack for ack in reversed(self.server.acks) if ack.kind == "policy"), None)

    def close(self) -> None:
        self.stop_agent()
        self.do(self.server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def policy_node(**settings: Any) -> Iterator[PolicyNode]:
    """One with a home of its own, gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    node = PolicyNode(home, **settings)
    try:
        yield node
    finally:
        node.close()
        shutil.rmtree(home, ignore_errors=True)


def entry_for(path: str, selector: str, entry_id: str = "") -> RegistrationEntry:
    """An entry for whoever has a selector, `type:value`."""
    kind, _, value = selector.partition(":")
    return RegistrationEntry(
        id=entry_id or path.strip("/").replace("/", "-"),
        spiffe_id=SpiffeId(TD, path),
        parent_id=SpiffeId(TD, "/spire/agent/join_token/t1"),
        selectors=frozenset({Selector(kind, value)}),
    )
