"""Writes of policies as the audit log has them: who, which revision, and what became of which object."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.runtime import log
from ca.store.audit import MAX_TEXT, AuditItem, AuditRecord
from ca.store.policies import Step
from policy.book_values import Body, Key

MAX_ITEMS = 200
MAX_LINES = 2_000
"""Of an object, as JSON; what has changed in a longer one the revision tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who writes, and from where."""

    name: str
    origin: str = ""


def written(steps: Sequence[Step], number: int, author: Author, *, call: str, server: str, at: datetime) -> AuditRecord:
    """Of a revision that is made."""
    items = [
        AuditItem(str(step.key), f"revision {number}: {told(step)}"[:MAX_TEXT], "OK") for step in steps[:MAX_ITEMS]
    ]
    if len(steps) > MAX_ITEMS:
        items.append(AuditItem("", f"revision {number}: and {len(steps) - MAX_ITEMS} more", "OK"))
    return record(author, items, call=call, server=server, at=at)


def record(
    author: Author,
    items: Iterable[AuditItem],
    *,
    call: str,
    server: str,
    at: datetime,
    code: str = "OK",
    reason: str = "",
) -> AuditRecord:
    """Of a write that was made, or refused."""
    return AuditRecord(
        at=at,
        server=server,
        actor=author.name,
        origin=author.origin,
        call=call,
        request_id=log.request_id.get(),
        code=code,
        reason=reason,
        items=tuple(items),
    )


def named(keys: Iterable[Key]) -> list[AuditItem]:
    """What somebody wanted to change."""
    return [AuditItem(str(key)) for _, key in zip(range(MAX_ITEMS), keys, strict=False)]


def told(step: Step) -> str:
    """What becomes of one object, in lines."""
    before, after = step.before, step.after
    if before is not None and after is not None and before.etag == after.etag:
        return f"owner `{before.owner}` → `{after.owner}`"
    was, will = (_lines(one.body) if one else [] for one in (before, after))
    if max(len(was), len(will)) > MAX_LINES:
        was, will = ([one.etag] if one else [] for one in (before, after))
    return diff(was, will)


def diff(before: Sequence[str], after: Sequence[str]) -> str:
    """What becomes of some lines: those that go begin with `-`, those that come with `+`."""
    what = ("changed" if after else "deleted") if before else "created"
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return "\n".join([what, *(line for line in lines if not line.startswith("@@"))])


def _lines(body: Body) -> list[str]:
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
