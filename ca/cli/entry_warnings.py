"""What is allowed and seldom meant: said on stderr when entries are written, and found by `caadmin entry lint`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ca.cli.entry_batches import Sent
from ca.cli.output import plain
from ca.cli.values import id_text
from ca.identity.exchange import ISSUER_WIDE_REASON, issuer_wide
from ca.identity.selector import PROGRAM_ALONE_REASON, Selector, program_alone

if TYPE_CHECKING:
    from ca.proto.spire import types_pb2

SHOWN = 5
"""Of more entries than that the number is told."""


class _Warning(NamedTuple):
    """`applies` looks at an entry's selectors."""

    applies: Callable[[Iterable[Selector]], bool]
    said: str
    reason: str
    hint: str


_WARNINGS = (
    _Warning(
        program_alone,
        "is for a program, whoever runs it: every local user who can execute the file can have it",
        PROGRAM_ALONE_REASON,
        "add who runs it, such as the selector `unix:uid:1000`",
    ),
    _Warning(
        issuer_wide,
        "is for everybody with a token of that issuer, whosesoever job it is",
        ISSUER_WIDE_REASON,
        "add whose it is, such as the selector `oidc:claim:repository:acme/shop`",
    ),
)


def warn(sent: Sent) -> None:
    """Name the entries that were written and are for more than was meant."""
    written = [entry for entry, result in zip(sent.entries, sent.results, strict=False) if result.status.code == 0]
    for warning in _WARNINGS:
        _tell(warning, [id_text(entry.spiffe_id) for entry in written if _applies(warning, entry)])


def findings(entries: Iterable[types_pb2.Entry]) -> list[dict[str, Any]]:
    """The same of each of them, as values; in the order of the entries."""
    return [
        {
            "entry_id": entry.id,
            "spiffe_id": id_text(entry.spiffe_id),
            "reason": warning.reason,
            "detail": warning.said,
            "hint": warning.hint,
        }
        for entry in entries
        for warning in _WARNINGS
        if _applies(warning, entry)
    ]


def _applies(warning: _Warning, entry: types_pb2.Entry) -> bool:
    return warning.applies([Selector(s.type, s.value) for s in entry.selectors])


def _tell(warning: _Warning, found: list[str]) -> None:
    for name in found[:SHOWN]:
        print(f"warning: {plain(f'`{name}` {warning.said}')} ({warning.reason})", file=sys.stderr)
    if len(found) > SHOWN:
        print(f"warning: so are {len(found) - SHOWN} more", file=sys.stderr)
    if found:
        print(f"hint: {warning.hint}", file=sys.stderr)
