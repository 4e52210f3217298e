"""What the rotation asks before a step that could cut somebody off: who is not ready for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ca.authority.state import Authority


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """Somebody whom the step would cut off. `kind` is what it is (`agent`, `svid`, `downstream-ca`, `consumer`, …).

    `who` is its SPIFFE ID or name, `reason` is UPPER_SNAKE, `detail` says what would break, in words. `until` is when
    the obstacle goes by itself; None when it does not.
    """

    kind: str
    who: str
    reason: str
    detail: str
    until: datetime | None = None


class Guard(Protocol):
    """Knows who depends on an authority. Both methods read and change nothing; no blocker means: go ahead.

    `before_activation`: who has not got `authority`, which is PREPARED and in the bundle, and so would refuse what it
    signs. `before_removal`: what is alive and chains to `authority` (OLD, perhaps tainted), or is signed by it. Raises
    a BurgeeError when it cannot tell; the step is then not taken.
    """

    async def before_activation(self, authority: Authority) -> Sequence[Blocker]: ...

    async def before_removal(self, authority: Authority) -> Sequence[Blocker]: ...


class NobodyBehind:
    """A guard for a trust domain without consumers: nothing is ever in the way."""

    async def before_activation(self, authority: Authority) -> Sequence[Blocker]:
        del authority
        return ()

    async def before_removal(self, authority: Authority) -> Sequence[Blocker]:
        del authority
        return ()
