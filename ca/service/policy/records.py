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
    if step.before is None:
        return "created"
    if step.after is None:
        return "deleted"
    if step.before.etag == step.after.etag:
        return f"owner `{step.before.owner}` → `{step.after.owner}`"
    before, after = _lines(step.before.body), _lines(step.after.body)
    if max(len(before), len(after)) > MAX_LINES:
        return f"changed, {step.before.etag} → {step.after.etag}"
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    return "changed\n" + "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def _lines(body: Body) -> list[str]:
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
