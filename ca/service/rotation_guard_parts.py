"""The guard of the rotation, and what it knows, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ca.authority.state import Authority, AuthorityKind
from ca.ports import Clock
from ca.service.acks import Acks
from ca.service.consumer_waits import ConsumerWaits
from ca.service.dependants import Dependants
from ca.service.live_issued import LiveIssued
from ca.service.peers import AgentTable
from ca.service.publication import Publication
from ca.service.readiness import Readiness
from ca.service.rotation_guard import RotationGuard
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardParts:
    """Each asks those before it."""

    acks: Acks
    publication: Publication
    readiness: Readiness
    dependants: Dependants
    guard: RotationGuard


def guard_parts(
    *,
    store: Store,
    trust: Trust,
    agents: AgentTable,
    index: AuthorizedIndex,
    clock: Clock,
    authorities: Callable[[], Sequence[Authority]],
    server: str,
    waits: ConsumerWaits | None = None,
    has_files: bool = False,
) -> GuardParts:
    """`authorities` gives all that are known, of every server; it may be asked only later. `server` names this one. To
    be made before the first authority is published: from then on it is seen when each of them is."""

    def token_keys() -> set[str]:
        return {one.authority_id for one in authorities() if one.kind is AuthorityKind.JWT}

    def has_others() -> bool:
        return any(one.server != server and one.not_after > clock.now() for one in authorities())

    acks = Acks()
    publication = Publication(trust, clock)
    issued = LiveIssued(log=store.issuance_tail, clock=clock, token_keys=token_keys)
    dependants = Dependants(issued=issued, agents=agents, acks=acks, clock=clock, has_others=has_others)
    readiness = Readiness(agents=agents, acks=acks, publication=publication, clock=clock, has_others=has_others)
    guard = RotationGuard(
        readiness=readiness,
        dependants=dependants,
        publication=publication,
        acks=acks,
        index=index,
        authorities=authorities,
        clock=clock,
        waits=waits,
        has_files=has_files,
    )
    return GuardParts(acks=acks, publication=publication, readiness=readiness, dependants=dependants, guard=guard)
