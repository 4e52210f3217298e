"""Lines of a check, by how they are."""

from __future__ import annotations

from ca.ports import Finding, FindingLevel


def ok(what: str, detail: str) -> Finding:
    return Finding(what=what, level=FindingLevel.OK, detail=detail)


def warning(what: str, detail: str, hint: str = "") -> Finding:
    return Finding(what=what, level=FindingLevel.WARNING, detail=detail, hint=hint)


def failed(what: str, detail: str, hint: str = "") -> Finding:
    return Finding(what=what, level=FindingLevel.FAILED, detail=detail, hint=hint)
