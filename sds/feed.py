"""What a server's push brings, or polling it, as values; and who receives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import TrustDomain

ENTRY = "entry"
BUNDLE = "bundle"
POLICY = "policy"
SET = "set"
"""The name of the one resource of that kind."""


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """How far the agent has followed the server's change log; an empty epoch asks for a snapshot."""

    epoch: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that concerns this agent; whatever is not named is gone.

    `policies` None: the server does not know of policies, and takes none away by not naming them.
    """

    token: ResumeToken
    entries: tuple[RegistrationEntry, ...] = ()
    bundles: tuple[TrustBundle, ...] = ()
    policies: bytes | None = None
    """A burgee.policy.v1.PolicySet, as it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What came and what went since the last token. Entries are named by id, bundles by trust domain."""

    token: ResumeToken
    entries: tuple[RegistrationEntry, ...] = ()
    bundles: tuple[TrustBundle, ...] = ()
    removed_entries: tuple[str, ...] = ()
    removed_bundles: tuple[TrustDomain, ...] = ()
    policies: bytes | None = None
    """None where they did not change."""
    removed_policies: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing came and nothing went: the server was asked, and all is as it was."""
        policies = self.policies is not None or self.removed_policies
        return not (self.entries or self.bundles or self.removed_entries or self.removed_bundles or policies)


@dataclass(frozen=True, slots=True)
class Consumers:
    """Streams on this agent that must take a kind of resource over, and those that have."""

    total: int = 0
    acked: int = 0
    waiting: tuple[str, ...] = ()
    """Some of those that have not, as an operator would look for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyState:
    """What one proxy made of the policies that it was given under one name. `state`: sent, acked, nacked, or
    unanswered. `in_force`: where it was refused, the revision that it goes by instead, 0 if that is not known;
    `unlogged`: its decisions do not reach the agent's access log."""

    proxy: str
    pid: int
    spiffe_id: str
    resource: str
    revision: int
    state: str
    detail: str = ""
    unlogged: bool = True
    in_force: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What this agent holds of a kind of resource, and how far its consumers are.

    Of bundles: the own trust domain's sequence number, the IDs of its authorities, and the streams that were told and
    cannot acknowledge. Of entries: how many X.509-SVIDs hang on which authority, as (ID, count) by ID.
    Of policies: the `revision` in force, why what came last is not (`error`), and what each proxy made of them.
    """

    consumers: Consumers = Consumers()
    sequence: int = 0
    authorities: tuple[str, ...] = ()
    workload_streams: int = 0
    svids: tuple[tuple[str, int], ...] = ()
    revision: int = 0
    error: str = ""
    proxies: tuple[ProxyState, ...] = ()


class Feed(Protocol):
    """Receives the push, in order, on the event loop.

    `on_snapshot` and `on_change` apply at once and do not block; what they raise is sent to the server as the reason
    for not having applied it, and the stream is begun anew from `token`. `held` is asked after each push and whenever
    `NodeClient.acknowledge` is called.
    """

    @property
    def token(self) -> ResumeToken: ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is acknowledged: what a server that does not know of policies never sent is not."""

    def not_known(self) -> None:
        """The server refused a word on a kind that it does not know: one that is older than what was here before."""

    def on_snapshot(self, snapshot: Snapshot) -> None: ...

    def on_change(self, change: Change) -> None: ...

    def held(self, kind: str) -> Held: ...
