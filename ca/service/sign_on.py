"""From a server that is up to one that can sign: keys within reach, authorities taken up, an SVID of its own."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from ca.errors import BurgeeError, Unavailable
from ca.ports import Clock, Connected, KeyManager
from ca.runtime import log
from ca.runtime.health import Problem
from ca.service.leftover_keys import LeftoverKeys
from ca.service.rotation import AuthorityManager
from ca.service.server_svid import ServerSvid

logger = log.get("server")

RETRY_SECONDS = 1.0


class SignOn:
    """`start` tries once. Keys that are elsewhere, or an upstream, may be out of reach then: `run` tries on, calls
    `on_done` when it is done, and goes on as the authority's own task."""

    def __init__(
        self,
        *,
        keys: KeyManager,
        authority: AuthorityManager,
        server_svid: ServerSvid,
        leftovers: LeftoverKeys | None,
        clock: Clock,
        patient: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`patient`: more than the keys depends on something outside. `jitter` gives 0 to 1."""
        self.keys = keys if isinstance(keys, Connected) else None
        self.done = False
        self._patient = patient or self.keys is not None
        self.on_done: Callable[[], Awaitable[None]] = _nothing
        self._authority = authority
        self._server_svid = server_svid
        self._leftovers = leftovers
        self._clock = clock
        self._jitter = jitter

    async def start(self) -> None:
        """Raises what only somebody can change, and Unavailable where all that is needed is here; `done` tells the
        rest."""
        try:
            if self.keys is not None:
                await self.keys.start()
            await self._sign_on()
            self.done = True
        except Unavailable as error:
            if not self._patient:
                raise
            logger.warning("nothing can be signed yet", reason=error.reason, detail=error.detail, hint=error.hint)

    async def run(self) -> None:
        """For ever."""
        said = ""
        while not self.done:
            await self._clock.sleep(RETRY_SECONDS * (0.5 + self._jitter()))
            try:
                await self._sign_on()
                await self.on_done()
                self.done = True
            except BurgeeError as error:
                if said != error.reason:
                    logger.warning("nothing can be signed yet", reason=error.reason, detail=error.detail)
                said = error.reason
        await self._authority.run()

    def check(self) -> Problem | None:
        """For ca.runtime.health: what is wrong with the way to the keys."""
        problem = None if self.keys is None else self.keys.problem()
        return None if problem is None else Problem(reason=problem.reason, detail=problem.detail, hint=problem.hint)

    async def _sign_on(self) -> None:
        if self._leftovers is not None:
            await self._leftovers.note()
        await self._authority.start()
        if self._server_svid.due:
            await self._server_svid.renew()


async def _nothing() -> None:
    return None
