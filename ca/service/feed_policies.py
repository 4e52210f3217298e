"""What one stream was sent of policies, and whether that is still what its agent needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ca.identity.entry import RegistrationEntry
from ca.service.policy.candidates import Concern, concern_of

if TYPE_CHECKING:
    from ca.service.policy.candidates import CandidateSet

SetOf = Callable[[frozenset[Concern]], "CandidateSet | None"]
"""What an agent with such entries is sent; None while there are no policies that could be read."""


class SentPolicies:
    """Follows the entries of the agent: only what they are about decides, so most changes of entries cost nothing."""

    def __init__(self, set_of: SetOf) -> None:
        self._set_of = set_of
        self._concerns: dict[str, Concern] = {}
        self._digest = b""
        self._stale = True
        self.revision = 0
        """Of what was sent last; 0 for nothing."""

    def begin(self, entries: Iterable[RegistrationEntry]) -> None:
        """The agent holds exactly these entries, and is sent its set whatever it had."""
        self._concerns = {entry.id: concern_of(entry) for entry in entries}
        self._digest, self._stale = b"", True

    def put(self, entry: RegistrationEntry) -> None:
        """An entry is new or another."""
        concern = concern_of(entry)
        if self._concerns.get(entry.id) != concern:
            self._concerns[entry.id] = concern
            self._stale = True

    def remove(self, entry_id: str) -> None:
        """An entry is the agent's no more."""
        if self._concerns.pop(entry_id, None) is not None:
            self._stale = True

    def note(self) -> None:
        """Policies are others now; perhaps not for this agent."""
        self._stale = True

    @property
    def settled(self) -> bool:
        """Whether it was looked, since the last change, if there is anything to be sent."""
        return not self._stale

    def take(self) -> CandidateSet | None:
        """What is to be sent; None where the agent has it."""
        if not self._stale:
            return None
        self._stale = False
        found = self._set_of(frozenset(self._concerns.values()))
        if found is None or found.digest == self._digest:
            return None
        self._digest, self.revision = found.digest, found.revision
        return found
