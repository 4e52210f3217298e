"""Values of the book as the documents that callers are told. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from ca.api.policy.refusals import Fault
from policy.book_values import Changed, Grant, Outcome, Revision, Stored
from policy.decision import Decision
from policy.findings import Finding

MayRead = Callable[[str], bool]


def moment(at: datetime) -> str:
    """RFC 3339, in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def stored_document(stored: Stored) -> dict[str, Any]:
    return {
        "object": dict(stored.body),
        "etag": stored.etag,
        "revision": stored.revision,
        "owner": stored.owner,
    }


def revision_summary(revision: Revision) -> dict[str, Any]:
    return {**_revision(revision), "count": revision.count}


def revision_document(revision: Revision, may_read: MayRead) -> dict[str, Any]:
    """With the changes of namespaces that may be read."""
    return {
        **_revision(revision),
        "changes": [_changed(changed) for changed in revision.changes if may_read(changed.key.namespace)],
    }


def _revision(revision: Revision) -> dict[str, Any]:
    return {
        "number": revision.number,
        "at": moment(revision.at),
        "actor": revision.actor,
        "note": revision.note,
    }


def _changed(changed: Changed) -> dict[str, Any]:
    key = changed.key
    return {
        "kind": key.kind,
        "namespace": key.namespace,
        "name": key.name,
        "before": None if changed.before is None else dict(changed.before),
        "after": None if changed.after is None else dict(changed.after),
    }


def outcome_document(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    """What a write did."""
    warnings = [
        Fault(code=one.code, detail=one.message, pointer=one.pointer, hint=one.hint) for one in outcome.warnings
    ]
    return {
        "dry_run": dry_run,
        "revision": None if outcome.revision is None else outcome.revision.number,
        "changed": outcome.changed,
        "objects": [stored_document(stored) for stored in outcome.objects],
        "warnings": [one.document() for one in warnings],
        "findings": finding_documents(outcome.findings),
        "difference": None if outcome.difference is None else outcome.difference.document(),
    }


def finding_documents(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [finding.document() for finding in findings]


def grant_document(grant: Grant) -> dict[str, Any]:
    return {
        "name": grant.name,
        "spiffe_id": grant.spiffe_id,
        "role": grant.role.value,
        "namespaces": list(grant.namespaces),
        "etag": grant.etag,
    }


def verdict_document(decision: Decision) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "reason": decision.reason.value,
        "policy": decision.policy,
        "rule": decision.rule,
        "providers": list(decision.providers),
        "shadow": None if decision.shadow is None else verdict_document(decision.shadow),
    }
