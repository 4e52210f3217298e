"""Label selectors, as `metav1.LabelSelector` has them: parsed strictly, for one that is misread selects too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ca.errors import InvalidArgument
from ca.identity.text import quote


@dataclass(frozen=True, slots=True)
class _Requirement:
    key: str
    operator: str
    values: frozenset[str]

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Labels §operators: NotIn and DoesNotExist hold for an absent label."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Holds where each of its requirements does; without any, always."""

    requirements: tuple[_Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(one.holds(labels) for one in self.requirements)

    @classmethod
    def parse(cls, value: Any, field: str) -> LabelSelector:
        """Raises InvalidArgument SELECTOR_LABELS that names `field`."""
        if value is None:
            return cls()
        if not isinstance(value, dict) or not value.keys() <= {"matchLabels", "matchExpressions"}:
            raise _wrong(field, "is no label selector")
        labels, expressions = value.get("matchLabels") or {}, value.get("matchExpressions") or []
        if not isinstance(labels, dict) or not isinstance(expressions, list):
            raise _wrong(field, "is no label selector")
        found = [_Requirement(key, "In", frozenset(_texts([text], field))) for key, text in labels.items()]
        return cls((*found, *(_expression(one, field) for one in expressions)))


def _expression(value: Any, field: str) -> _Requirement:
    if not isinstance(value, dict) or not isinstance(value.get("key"), str) or not value["key"]:
        raise _wrong(field, "has a requirement without a key")
    operator, values = value.get("operator"), _texts(value.get("values") or [], field)
    if operator in ("In", "NotIn"):
        if not values:
            raise _wrong(field, f"asks for {operator} and names no values")
    elif operator not in ("Exists", "DoesNotExist"):
        raise _wrong(field, f"has the operator {quote(str(operator))}")
    elif values:
        raise _wrong(field, f"asks for {operator} and names values")
    return _Requirement(value["key"], operator, frozenset(values))


def _texts(values: Any, field: str) -> Sequence[str]:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise _wrong(field, "has a value that is no text")
    return values


def _wrong(field: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"`{field}` {what}", reason="SELECTOR_LABELS")
