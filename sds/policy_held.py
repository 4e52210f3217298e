"""The policies that this agent was sent: what came last, and the last that could be used, which is in force.

A set is read off the event loop and swapped as a whole. One that cannot be read leaves the one before in force, and the
server is told why. The engine is loaded when the first object comes, or the first who asks: an agent without policies
and without proxies has none of it in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ca.errors import BurgeeError, InvalidArgument
from ca.proto.burgee import policy_pb2
from ca.runtime.collector import paused
from ca.runtime.log import get
from ca.runtime.metrics import counter, gauge
from sds.policy_given import GivenTokens

if TYPE_CHECKING:
    from sds.policy_read import Policies

REVISION = gauge("agent_policy_revision", "Revision of the policies in force; 0 while there are none")
REFUSED = counter("agent_policy_sets_refused", "Sets of policies that could not be used; the one before stays in force")
MAX_DETAIL = 500
READ_SECONDS = 5.0
NONE_YET = "the server has sent this agent no policies"
NOT_PUSHED = "the server is polled, and such a server pushes no policies"
TAKEN_AWAY = "the server gives this agent no policies any more"
log = get("sds.policy")


class HeldPolicies:
    """`take` what comes; `run` in a task. `on_change` is called on the event loop after other policies are in force,
    `on_verdict` after a set was looked at, whether it could be used or not."""

    def __init__(self) -> None:
        self.taken_away = False
        """The server said that there are none: everything is refused then."""
        self.problem = ""
        """Why what came last is not in force."""
        self.on_change: list[Callable[[], None]] = []
        self.on_verdict: list[Callable[[], None]] = []
        self.told = False
        """Whether the server ever said anything of policies: it knows of them, then."""
        self.given = GivenTokens()
        self.polled = False
        """The server is asked every few seconds and says nothing of policies: what is in force grows old."""
        self._policies: Policies | None = None
        self._unread: int | None = None
        """The revision of a set without objects that nobody asked for yet."""
        self._asked = False
        self._good: bytes | None = None
        self._came = b""
        self._waits, self._looked_at = asyncio.Event(), asyncio.Event()
        self._forgotten = 0

    @property
    def in_force(self) -> Policies | None:
        """Who looks at them wants them: a set that was put aside is read then."""
        self._asked = True
        if self._unread is not None and self._policies is None:
            self._waits.set()
        return self._policies

    async def asked(self) -> Policies | None:
        """As `in_force`, once a set that was put aside has been read, which takes a moment."""
        if (policies := self.in_force) is not None:
            return policies
        try:
            async with asyncio.timeout(READ_SECONDS):
                while self.in_force is None and self._unread is not None and not self.problem:
                    self._looked_at.clear()
                    await self._looked_at.wait()
        except TimeoutError:
            pass
        return self._policies

    @property
    def payload(self) -> bytes | None:
        """What is in force, as it came; empty where the server took it away, None before the first."""
        return self._good

    @property
    def came(self) -> str:
        """A name for what came last; empty while nothing came. The server counts on it being remembered."""
        return digest(self._came)

    @property
    def revision(self) -> int:
        """Of what is in force; 0 for nothing."""
        return self._policies.revision if self._policies is not None else self._unread or 0

    @property
    def detail(self) -> str:
        """Why what came is not in force, or why there is nothing; empty where all is well."""
        if self.problem or self._policies is not None or (self._unread is not None and not self._asked):
            return self.problem
        if self.taken_away:
            return TAKEN_AWAY
        return "the policies are being read" if self._came else NOT_PUSHED if self.polled else NONE_YET

    def heard(self, *, polled: bool, newcomers: frozenset[str] = frozenset()) -> None:
        """The server said something, and nothing of policies. One that is polled would not say either that some are for
        `newcomers`: those are refused everything."""
        if polled and self._policies is not None:
            self._policies.newcomers |= newcomers
        if polled is not self.polled:
            self.polled = polled
            self._changed()

    def take(self, payload: bytes | None, newcomers: frozenset[str] = frozenset()) -> None:
        """The server's last word; None: there are none any more. A server repeats it with each stream that begins.
        `newcomers` are the IDs of entries that come with it: those before it know nothing of them."""
        looked_at = self._policies is not None or bool(self.problem)
        if payload and payload == self._came and looked_at and not self._waits.is_set():
            if self._policies is not None and self._policies.newcomers and payload == self._good:
                self._waits.set()  # to be read anew, so that nothing that was made for a newcomer is kept
            return
        self._came, self.told = payload or b"", True
        if payload is None:
            self._forgotten += 1
            self._policies = self._unread = None
            self.given.clear()
            self.taken_away, self.problem, self._good = True, "", b""
            self._changed()
        elif self._policies is None and not self._asked and (revision := _without_objects(payload)) is not None:
            self._unread, self.taken_away, self.problem, self._good = revision, False, "", payload
            self._changed()
        else:
            if self._policies is not None:
                self._policies.newcomers |= newcomers
            self._waits.set()

    def forget(self) -> None:
        """Nothing of it is remembered."""
        self._came, self._good = b"", None
        self._forgotten += 1
        self._policies = self._unread = None
        self.given.clear()
        self.taken_away, self.problem = False, ""
        self._changed()

    async def run(self) -> None:
        """Read what comes, for ever."""
        while True:
            await self._waits.wait()
            self._waits.clear()
            await self._read()

    async def _read(self) -> None:
        payload, forgotten = self._came, self._forgotten
        try:
            policies = await asyncio.to_thread(_read, payload, self._policies)
        except BurgeeError as error:
            if forgotten == self._forgotten:
                self._refused(error)
            return
        if forgotten != self._forgotten:
            return  # what was read is not to be remembered
        if payload is not self._came and self._policies is not None:
            policies.newcomers = self._policies.newcomers  # they may have come with the one that is read next
        self._policies, self._unread = policies, None
        self.taken_away, self.problem, self._good = False, "", payload
        log.info("policies are in force", revision=policies.revision)
        self._changed()

    def _refused(self, error: BurgeeError) -> None:
        self.problem = error.detail[:MAX_DETAIL]
        REFUSED.inc()
        log.error("policies cannot be used", reason=error.reason, detail=self.problem, in_force=self.revision)
        self._tell()

    def _changed(self) -> None:
        REVISION.set(self.revision)
        for callback in self.on_change:
            callback()
        self._tell()

    def _tell(self) -> None:
        self._looked_at.set()
        for callback in self.on_verdict:
            callback()


def digest(payload: bytes) -> str:
    """A name for a set; empty for none."""
    return hashlib.sha256(payload).hexdigest() if payload else ""


def _without_objects(payload: bytes) -> int | None:
    """The revision of a set that has none; of others, and of what cannot be read, None."""
    try:
        message = policy_pb2.PolicySet.FromString(payload)
    except DecodeError:
        return None
    return None if message.objects or not message.HasField("mesh") else int(message.revision)


def _read(payload: bytes, previous: Policies | None) -> Policies:
    from sds.policy_read import read

    try:
        with paused():
            return read(payload, previous)
    except BurgeeError:
        raise
    except Exception as error:  # whatever the engine trips over, the one before stays in force
        log.exception("policies cannot be used", reason="POLICY_SET_UNREADABLE")
        detail = f"the policies cannot be used: {type(error).__name__}"
        raise InvalidArgument(detail, reason="POLICY_SET_UNREADABLE") from error
