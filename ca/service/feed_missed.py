"""What each change did to whom, remembered so that a reconnecting agent gets exactly what it missed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.service.follower import Applied

MEMORY = 10_000
"""Changes whose effects are remembered."""


@dataclass(kw_only=True)
class Resume:
    """What changed for one agent since its resume token."""

    entries: set[str] = field(default_factory=set)
    bundles: set[TrustDomain] = field(default_factory=set)


class Missed:
    """What each change since this server's start did to whom, bounded; exact where the log can only be careful."""

    def __init__(self, since: int) -> None:
        self.since = since
        """The oldest resume token that can be answered."""
        self._passes: deque[Applied] = deque()
        self._size = 0

    def add(self, applied: Applied) -> None:
        self._passes.append(applied)
        self._size += _weight(applied)
        while self._size > MEMORY and len(self._passes) > 1:
            dropped = self._passes.popleft()
            self._size -= _weight(dropped)
            self.since = dropped.revision

    def of(self, agent_id: SpiffeId, revision: int) -> Resume | None:
        """None when the agent's whole set was touched: then only a snapshot is sure to be right."""
        resume = Resume()
        for applied in reversed(self._passes):
            if applied.revision <= revision:
                break
            if agent_id in applied.whole:
                return None
            resume.entries.update(name for name, agents in applied.entries.items() if agent_id in agents)
            resume.bundles |= applied.bundles
        return resume


def _weight(applied: Applied) -> int:
    return 1 + len(applied.whole) + sum(1 + len(agents) for agents in applied.entries.values())
