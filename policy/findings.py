"""What an analysis has to say about policies: one finding, as lint, the gate and `caadmin` show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from policy.model import Origin


class Severity(StrEnum):
    """An error makes a policy mean what nobody wants; a warning should be looked at; an information may stay."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found. `key` is `namespace/name` of the object, `rule` the rule's number from 0, None for the whole."""

    code: str
    severity: Severity
    key: str
    rule: int | None = None
    message: str
    hint: str = ""
    origin: Origin = field(default=Origin(), compare=False)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "key": self.key,
            "rule": self.rule,
            "message": self.message,
            "hint": self.hint,
            "origin": str(self.origin),
        }

    def text(self) -> str:
        """For people: what was found, and below it what to do."""
        return f"{self}\n    {self.hint}" if self.hint else str(self)

    def __str__(self) -> str:
        rule = "" if self.rule is None else f", rule {self.rule}"
        place = f"{self.origin}: " if str(self.origin) else ""
        return f"{place}{self.severity}: {self.key}{rule}: {self.message} ({self.code})"
