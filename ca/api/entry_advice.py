"""What of an entry is allowed and seldom meant: a line in the server's log when it is written."""

from __future__ import annotations

from collections.abc import Iterable

from ca.identity.entry import RegistrationEntry
from ca.identity.selector import PROGRAM_ALONE_REASON, program_alone
from ca.runtime import log

_log = log.get("entries")


def advise(entries: Iterable[RegistrationEntry]) -> None:
    """One line for the entries of one call that are for a program, whoever runs it."""
    found = [entry for entry in entries if program_alone(entry.selectors)]
    if found:
        _log.warning(
            "an entry is for a program, whoever runs it",
            reason=PROGRAM_ALONE_REASON,
            entry_id=found[0].id,
            spiffe_id=str(found[0].spiffe_id),
            hint="add who runs it, such as `unix:uid:1000`",
            **({"more": len(found) - 1} if len(found) > 1 else {}),
        )
