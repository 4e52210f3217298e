"""What is allowed and seldom meant: said on stderr when entries are written."""

from __future__ import annotations

import sys

from ca.cli.entry_batches import Sent
from ca.cli.output import plain
from ca.cli.values import id_text
from ca.identity.selector import PROGRAM_ALONE_REASON, Selector, program_alone

SHOWN = 5
"""Of more entries than that the number is told."""


def warn(sent: Sent) -> None:
    """Name the entries that were written and are for a program, whoever runs it."""
    found = [
        id_text(result.entry.spiffe_id)
        for entry, result in zip(sent.entries, sent.results, strict=False)
        if result.status.code == 0 and program_alone(Selector(s.type, s.value) for s in entry.selectors)
    ]
    for name in found[:SHOWN]:
        text = f"`{name}` is for a program, whoever runs it: every local user who can execute the file can have it"
        print(f"warning: {plain(text)} ({PROGRAM_ALONE_REASON})", file=sys.stderr)
    if len(found) > SHOWN:
        print(f"warning: so are {len(found) - SHOWN} more", file=sys.stderr)
    if found:
        print("hint: add who runs it, such as the selector `unix:uid:1000`", file=sys.stderr)
