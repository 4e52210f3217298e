"""What of an entry is allowed and seldom meant: a line in the server's log when it is written."""

from __future__ import annotations

from collections.abc import Iterable

from ca.identity.entry import RegistrationEntry
from ca.identity.exchange import ISSUER_WIDE_REASON, issuer_wide
from ca.identity.selector import PROGRAM_ALONE_REASON, program_alone
from ca.runtime import log

_log = log.get("entries")


def advise(entries: Iterable[RegistrationEntry]) -> None:
    """One line of each kind for the entries of one call: those for a program, whoever runs it, and those for everybody
    with a token of an issuer."""
    given = list(entries)
    _warn(
        "an entry is for a program, whoever runs it",
        [entry for entry in given if program_alone(entry.selectors)],
        reason=PROGRAM_ALONE_REASON,
        hint="add who runs it, such as `unix:uid:1000`",
    )
    _warn(
        "an entry is for everybody with a token of an issuer",
        [entry for entry in given if issuer_wide(entry.selectors)],
        reason=ISSUER_WIDE_REASON,
        hint="add whose it is, such as `oidc:sub:…` or `oidc:claim:repository:…`",
    )


def _warn(said: str, found: list[RegistrationEntry], *, reason: str, hint: str) -> None:
    if not found:
        return
    _log.warning(
        said,
        reason=reason,
        entry_id=found[0].id,
        spiffe_id=str(found[0].spiffe_id),
        hint=hint,
        **({"more": len(found) - 1} if len(found) > 1 else {}),
    )
