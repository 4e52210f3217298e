"""The agent's node side assembled against a fake server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ca.identity.bundle import TrustBundle
from ca.identity.bundle_pem import format_pem
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from sds.condition import Condition
from sds.config import AgentConfig
from sds.feed import Change, Consumers, Held, ResumeToken, Snapshot
from sds.first_trust import ServerTrust
from sds.node_client import NodeClient
from sds.node_identity import NodeIdentity
from sds.state import AgentStore, open_store
from tests.sds.fake_server import FakeServer


async def until(condition: Callable[[], Any], *, seconds: float = 10.0) -> None:
    """Polls; fails loudly when the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the awaited state did not come"
        await asyncio.sleep(0.01)


def write_bundle(path: Path, bundle: TrustBundle) -> None:
    path.write_text(format_pem(bundle))


def config_for(tmp_path: Path, server: FakeServer, **changes: Any) -> AgentConfig:
    if not (tmp_path / "bundle.pem").exists():
        write_bundle(tmp_path / "bundle.pem", server.trust_bundle)
    values: dict[str, Any] = {
        "trust_domain": "example.org",
        "data_dir": str(tmp_path / "agent"),
        "servers": [server.address],
        "trust": {"bundle_file": str(tmp_path / "bundle.pem")},
        "node_attestor": {"join_token": {"token": "t1"}},
        "cache": {"directory": str(tmp_path / "cache")},
    }
    return from_values(values | changes, AgentConfig)


class Proof:
    """A prover with as many proofs as the test wants."""

    def __init__(self, *payloads: bytes, again: bool = False) -> None:
        self.payloads = list(payloads)
        self.again = again
        self.challenges: list[bytes] = []

    @property
    def can_reattest(self) -> bool:
        return self.again or len(self.payloads) > 1

    async def payload(self) -> bytes:
        return self.payloads.pop(0) if len(self.payloads) > 1 else self.payloads[0]

    async def answer(self, challenge: bytes) -> bytes:
        self.challenges.append(challenge)
        return b"re:" + challenge


@dataclass
class RecordingFeed:
    """Keeps what came."""

    token: ResumeToken = field(default_factory=ResumeToken)
    entries: dict[str, RegistrationEntry] = field(default_factory=dict)
    bundles: dict[TrustDomain, TrustBundle] = field(default_factory=dict)
    snapshots: int = 0
    changes: int = 0
    fail: bool = False
    numbers: Consumers = field(default_factory=Consumers)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots += 1
        self.entries = {e.id: e for e in snapshot.entries}
        self.bundles = {b.trust_domain: b for b in snapshot.bundles}
        self.token = snapshot.token

    def on_change(self, change: Change) -> None:
        if self.fail:
            self.fail = False
            raise RuntimeError("the cache tripped")
        self.changes += 1
        self.entries |= {e.id: e for e in change.entries}
        self.bundles |= {b.trust_domain: b for b in change.bundles}
        for name in change.removed_entries:
            self.entries.pop(name, None)
        for domain in change.removed_bundles:
            self.bundles.pop(domain, None)
        self.token = change.token

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("entry", "bundle")

    def not_known(self) -> None:
        pass

    def held(self, kind: str) -> Held:
        return Held(consumers=self.numbers) if kind == "entry" else Held()


class Node:
    """One agent's node side; `run` in a task each."""

    def __init__(self, config: AgentConfig, proof: Any, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.store: AgentStore = open_store(config)
        self.condition = Condition(self.clock)
        self.trust = ServerTrust(config=config, clock=self.clock, store=self.store)
        self.identity = NodeIdentity(
            config=config,
            clock=self.clock,
            store=self.store,
            trust=self.trust,
            attestor="join_token",
            prover=proof,
            condition=self.condition,
            jitter=lambda: 0.0,
        )
        self.feed = RecordingFeed()
        self.client = NodeClient(
            config=config,
            clock=self.clock,
            identity=self.identity,
            trust=self.trust,
            feed=self.feed,
            condition=self.condition,
            version="1.2.3",
            jitter=lambda: 0.0,
        )

    @property
    def reason(self) -> str:
        return self.condition.problem.reason if self.condition.problem else ""

    @property
    def detail(self) -> str:
        return self.condition.problem.detail if self.condition.problem else ""


@asynccontextmanager
async def running(node: Node, *, client: bool = True) -> AsyncIterator[Node]:
    tasks = [asyncio.create_task(node.identity.run())]
    if client:
        tasks.append(asyncio.create_task(node.client.run()))
    else:
        node.condition.in_touch()  # as the client would say
    try:
        yield node
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await node.client.close()
        for result in results:
            if isinstance(result, Exception):
                raise result


@asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[FakeServer]:
    await server.start()
    try:
        yield server
    finally:
        await server.close()
