"""How far policies got on this node: which are in force, and what each proxy made of what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sds.envoy_status import SdsClient, SdsClients
from sds.envoy_subscriber import ResourceState, Subscriber
from sds.feed import Held, ProxyState
from sds.policy_held import HeldPolicies

MAX_SAID = 512
"""Of more an agent says nothing. Left out first is what names nobody's policies, which a workload may ask for as it
likes, then what was taken over."""
MAX_DETAIL = 1024
ACKED = "acked"
STATES = {
    ResourceState.SENT: "sent",
    ResourceState.ACKED: ACKED,
    ResourceState.NACKED: "nacked",
    ResourceState.UNKNOWN: "unanswered",
}

Logged = Callable[[int, str], bool]
"""Whether the decisions of a proxy, by pid and node id, reach the agent's access log."""


def unlogged(pid: int, node_id: str) -> bool:
    """Where nobody keeps a log."""
    return False


def rollout(held: HeldPolicies, clients: SdsClients, logged: Logged) -> Held:
    """What the server is told."""
    found = [state for client in clients.all() for state in _of(client, logged)]
    found.sort(key=lambda state: (not state.spiffe_id, state.state == ACKED))
    return Held(revision=held.revision, error=held.problem, proxies=tuple(found[:MAX_SAID]))


def gone_by(clients: SdsClients, pid: int) -> int | None:
    """The revision that a process' proxy goes by: of several filters the oldest; None where it took none over."""
    found = (_taken_over(client.stream) for client in clients.all() if client.pid == pid)
    return min((revision for revisions in found for revision in revisions), default=None)


def _taken_over(stream: Subscriber) -> Iterator[int]:
    seen = stream.seen
    if seen is None or not hasattr(seen, "owners"):
        return
    for status in stream.statuses.values():
        version = seen.version if status.state is ResourceState.ACKED else status.accepted
        if version.isdigit():
            yield int(version)


def _of(client: SdsClient, logged: Logged) -> Iterator[ProxyState]:
    stream, seen = client.stream, client.stream.seen
    owners = getattr(seen, "owners", None)
    if seen is None or owners is None:
        return
    for name, owner in owners.items():
        status = stream.statuses.get(name)
        if status is not None and owner is not None:
            yield ProxyState(
                proxy=stream.node_id,
                pid=client.pid,
                spiffe_id=owner.spiffe_id,
                resource=name,
                revision=int(seen.version),
                state=STATES[status.state],
                detail=status.detail[:MAX_DETAIL],
                unlogged=not logged(client.pid, stream.node_id),
                in_force=int(status.accepted or 0) if status.state is ResourceState.NACKED else 0,
            )
