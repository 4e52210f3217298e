"""A server's memory without a server: agents, what they say, what was issued; and the guard over it."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from shutil import rmtree
from typing import Any

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority, authority_id
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import KeyType
from ca.service.acks import BUNDLE, ENTRY, Acknowledged
from ca.service.peers import AgentTable
from ca.service.rotation_guard_parts import guard_parts
from ca.service.rotation_guard_port import Blocker
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store
from ca.store.values import AttestedAgent, IssuanceRecord
from tests.ca.identity import forge
from tests.support.clock import FakeClock

TD = TrustDomain("example.org")
HOUR = timedelta(hours=1)


def agent_id(name: str) -> SpiffeId:
    return SpiffeId(TD, f"/spire/agent/x/{name}")


class GuardLab:
    """Made by `guard_lab`. Two X.509 authorities, A active and B prepared, and the same of JWT keys, J and K."""

    def __init__(self, store: Store, clock: FakeClock, **options: Any) -> None:
        self.store = store
        self.clock = clock
        self.trust = Trust(TD)
        self.agents = AgentTable(store.agents)
        self.index = AuthorizedIndex(TD, clock.now)
        self.known: list[Authority] = []
        parts = guard_parts(
            store=store,
            trust=self.trust,
            agents=self.agents,
            index=self.index,
            clock=clock,
            authorities=lambda: self.known,
            server="one",
            **options,
        )
        self.acks, self.publication, self.readiness = parts.acks, parts.publication, parts.readiness
        self.dependants, self.guard = parts.dependants, parts.guard
        self.live = parts.dependants.issued
        self.roots = {name: forge.root(name) for name in "AB"}
        self.publish("A", "J")
        self.publish("A", "B", "J", "K")
        self.known = [
            self.authority("A", AuthorityState.ACTIVE),
            self.authority("B", AuthorityState.PREPARED),
            self.key("J", AuthorityState.ACTIVE),
            self.key("K", AuthorityState.PREPARED),
        ]
        self._serials = itertools.count(1000)

    # --- authorities --------------------------------------------------------------------------------------------

    def id(self, name: str) -> str:
        """Of a root, or of a key, whose ID is its name."""
        return authority_id(self.roots[name].der) if name in self.roots else name

    def publish(self, *names: str) -> None:
        """What the bundle holds from now on."""
        now = self.clock.now()
        before = self.trust.get(TD)
        self.trust.put(
            TrustBundle(
                trust_domain=TD,
                x509_authorities=tuple(X509Authority(certificate=self.roots[n].der) for n in names if n in self.roots),
                jwt_authorities=tuple(
                    JwtAuthority(key_id=n, public_key=b"k", expires_at=now + 24 * HOUR)
                    for n in names
                    if n not in self.roots
                ),
                sequence_number=before.sequence_number + 1 if before else 1,
            )
        )

    def authority(self, name: str, status: AuthorityState, **changes: Any) -> Authority:
        now = self.clock.now()
        values: dict[str, Any] = {
            "kind": AuthorityKind.X509,
            "authority_id": self.id(name),
            "key_id": name,
            "key_type": KeyType.EC_P256,
            "status": status,
            "not_before": now,
            "not_after": now + 24 * HOUR,
            "server": "one",
            "certificate": self.roots[name].der if name in self.roots else b"",
        }
        return Authority(**values | changes)

    def key(self, name: str, status: AuthorityState) -> Authority:
        return self.authority(name, status, kind=AuthorityKind.JWT, authority_id=name, public_key=b"k")

    def find(self, name: str) -> Authority:
        return next(a for a in self.known if a.authority_id == self.id(name))

    # --- agents -------------------------------------------------------------------------------------------------

    async def agent(self, name: str, *, ttl: timedelta = HOUR, issuer: str = "A", **changes: Any) -> SpiffeId:
        """An attested agent whose own SVID is on record."""
        serial, end = str(next(self._serials)), self.clock.now() + ttl
        made = AttestedAgent(id=agent_id(name), attestation_type="x", serial=serial, not_after=end)
        async with self.agents.lock:
            self.agents.adopt(made.id, replace(made, **changes))
        await self.record(issuer, spiffe_id=str(made.id), agent=str(made.id), serial=serial, end=end)
        return made.id

    def ack(self, name: str, *held: str, kind: str = BUNDLE, **fields: Any) -> None:
        """What an agent says on its stream; `held` are authorities that its bundle has."""
        self.acks.connected.add(agent_id(name))
        values: dict[str, Any] = {
            "revision": 1,
            "error": "",
            "consumers": 0,
            "consumers_acked": 0,
            "sequence": len(held),
        }
        values |= {"authorities": frozenset(map(self.id, held)), "at": self.clock.now()}
        self.acks.put(agent_id(name), kind, Acknowledged(**values | fields))

    def holds(self, name: str, *, consumers: int = 0, acked: int = 0, **svids: int) -> None:
        """How many SVIDs of which authority an agent says it has, and how far its Envoys are with them."""
        counts = {self.id(issuer): count for issuer, count in svids.items()}
        self.ack(name, kind=ENTRY, svids=counts, consumers=consumers, consumers_acked=acked)

    # --- what was issued ----------------------------------------------------------------------------------------

    async def record(
        self,
        issuer: str,
        *,
        spiffe_id: str,
        agent: str = "",
        entry: str = "",
        kind: str = "x509",
        serial: str = "",
        end: datetime | None = None,
    ) -> None:
        """One record in a batch of its own."""
        await self.store.issuance.append([self.one(issuer, spiffe_id, agent, entry, kind, serial, end)])

    def one(
        self, issuer: str, spiffe_id: str, agent: str, entry: str, kind: Any, serial: str, end: datetime | None
    ) -> IssuanceRecord:
        now = self.clock.now()
        return IssuanceRecord(
            kind=kind,
            serial_or_kid=issuer if kind == "jwt" else serial or str(next(self._serials)),
            tbs_sha256=os.urandom(32),
            authority_id=self.id(issuer),
            server="one",
            spiffe_id=spiffe_id,
            not_before=now,
            not_after=end or now + HOUR,
            entry_id=entry,
            agent=agent,
        )

    async def workload(self, name: str, entry: str, issuer: str = "A", **fields: Any) -> None:
        """An SVID for an agent's workload."""
        await self.record(
            issuer, spiffe_id=f"spiffe://example.org/{entry}", agent=str(agent_id(name)), entry=entry, **fields
        )

    async def downstream(self, path: str, issuer: str = "A") -> None:
        """A certificate for a server below this one, by its entry."""
        made = RegistrationEntry(
            id=f"entry-{path}",
            spiffe_id=SpiffeId(TD, f"/{path}"),
            parent_id=agent_id("n"),
            selectors=frozenset({Selector("t", "v")}),
            downstream=True,
        )
        self.index.put_entry(made)
        await self.record(
            issuer, spiffe_id="spiffe://example.org", entry=made.id, kind="ca", end=self.clock.now() + 24 * HOUR
        )

    # --- questions ----------------------------------------------------------------------------------------------

    async def activation(self, name: str = "B") -> list[Blocker]:
        return list(await self.guard.before_activation(self.find(name)))

    async def removal(self, name: str = "A") -> list[Blocker]:
        return list(await self.guard.before_removal(self.find(name)))


def reasons(blockers: Iterable[Blocker]) -> list[str]:
    return [blocker.reason for blocker in blockers]


@asynccontextmanager
async def guard_lab(**options: Any) -> AsyncIterator[GuardLab]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    clock = FakeClock()
    store = await Store.open(f"sqlite:///{directory}/s.sqlite3", clock=clock)
    try:
        yield GuardLab(store, clock, **options)
    finally:
        await store.close()
        rmtree(directory, ignore_errors=True)
