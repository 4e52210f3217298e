"""Names of users and groups, remembered briefly: the name service may be slow, and accounts may change."""

from __future__ import annotations

import grp
import pwd
import time
from collections.abc import Callable

REMEMBER_SECONDS = 10.0
MAX_REMEMBERED = 4096


class Names:
    """Looks up names by number. An id without a name yields None: its number is a selector all the same."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        find_user: Callable[[int], str] = lambda uid: pwd.getpwuid(uid).pw_name,
        find_group: Callable[[int], str] = lambda gid: grp.getgrgid(gid).gr_name,
    ) -> None:
        self._monotonic = monotonic
        self._find = {"user": find_user, "group": find_group}
        self._known: dict[tuple[str, int], tuple[float, str | None]] = {}

    def user(self, uid: int) -> str | None:
        return self._name("user", uid)

    def group(self, gid: int) -> str | None:
        return self._name("group", gid)

    def _name(self, kind: str, number: int) -> str | None:
        now = self._monotonic()
        known = self._known.get((kind, number))
        if known is not None and now < known[0]:
            return known[1]
        try:
            name: str | None = self._find[kind](number) or None
        except KeyError:
            name = None
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[kind, number] = (now + REMEMBER_SECONDS, name)
        return name
