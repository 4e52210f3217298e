"""Whether an agent is heard of: it follows this server, asks it every few seconds, or may tell another server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ca.authority.state import Authority
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.service.acks import Acks


class Heard:
    """`authorities` are those of every server that shares the store; `server` names this one."""

    def __init__(
        self, *, acks: Acks, authorities: Callable[[], Sequence[Authority]], server: str, clock: Clock
    ) -> None:
        self._acks = acks
        self._authorities = authorities
        self._server = server
        self._clock = clock

    def __call__(self, agent_id: SpiffeId) -> bool:
        """As far as this server can tell: what agents tell other servers is not known here."""
        return self.here(agent_id) or self._has_others()

    def here(self, agent_id: SpiffeId) -> bool:
        """Whether it follows or asks this very server."""
        return agent_id in self._acks.connected or self._acks.last_poll(agent_id) is not None

    def _has_others(self) -> bool:
        now = self._clock.now()
        return any(one.server != self._server and one.not_after > now for one in self._authorities())
