"""What proxies verify tokens by, and what they did a moment ago.

A request whose tokens a proxy verified by the rules of one revision is decided by that revision, also where the agent
is asked about it and has another in force meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sds.policy_read import Policies
    from sds.views import BundleForms

LINGER_SECONDS = 30.0
"""So long a proxy may take for what it was given instead: what it asks later is refused."""
MAX_GIVEN = 1024


@dataclass(slots=True)
class Given:
    """The last policies and bundles that have this meaning, for a while."""

    policies: Policies
    bundles: tuple[BundleForms, ...]
    until: float = inf


class GivenTokens:
    """By the name of what verifies them. `now` is a monotonic clock's, in seconds."""

    def __init__(self) -> None:
        self._given: dict[str, Given] = {}

    def give(self, name: str, policies: Policies, bundles: tuple[BundleForms, ...]) -> None:
        """A proxy is about to be given it."""
        self._given.pop(name, None)
        self._given[name] = Given(policies, bundles)
        if len(self._given) > MAX_GIVEN:
            self._given.pop(next(iter(self._given)))

    def withdraw(self, now: float, names: Iterable[str] | None = None) -> None:
        """Something else is given instead of these, or of all."""
        for name in self._given.keys() if names is None else self._given.keys() & set(names):
            self._given[name].until = min(self._given[name].until, now + LINGER_SECONDS)
        self._given = {name: given for name, given in self._given.items() if given.until > now}

    def find(self, name: str, now: float) -> Given | None:
        """None for what was not given, or too long ago."""
        given = self._given.get(name)
        return given if given is not None and given.until > now else None

    def clear(self) -> None:
        """Nothing of it is remembered."""
        self._given = {}
