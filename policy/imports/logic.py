"""Conditions joined by and, or and not, as rules: each alternative is a rule, and what a field cannot say CEL does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from policy import cel
from policy.authorization import MAX_RULES
from policy.clauses import negation
from policy.model import Request
from policy.templates import has_braces

SOURCE = ("principals", "namespaces", "trustDomains", "ipBlocks", "remoteIpBlocks")
OPERATION = ("hosts", "ports", "methods", "paths")
_AS_CONDITION = {
    "principals": "source.principal",
    "namespaces": "source.namespace",
    "trustDomains": "source.trustDomain",
    "ipBlocks": "source.ip",
    "remoteIpBlocks": "remote.ip",
    "ports": "destination.port",
}
"""What else says the same, where a field is taken."""
MAX_CONDITION = 4096


class Unsayable(Exception):
    """No rule can say this; the text says what."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One condition: a field of a rule, or a condition's key, with alternatives; or CEL, which `cel` is. With both, CEL
    says the same, and stands in where the field is taken. `lost`: nothing can say it; it is neither true nor false."""

    field: str = ""
    values: tuple[str, ...] = ()
    cel: str = ""
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Not:
    of: Expression


@dataclass(frozen=True, slots=True)
class All:
    of: tuple[Expression, ...] = ()


@dataclass(frozen=True, slots=True)
class Any_:
    of: tuple[Expression, ...] = ()


Expression = Atom | Not | All | Any_
Literal = tuple[Atom, bool]
"""A condition, and whether it must hold."""
TRUE, FALSE = All(), Any_()


def alternatives(expression: Expression, *, holds: bool = True) -> list[tuple[Literal, ...]]:
    """The ways in which an expression is as wanted. Raises Unsayable where there are too many."""
    if isinstance(expression, Not):
        return alternatives(expression.of, holds=not holds)
    if isinstance(expression, Atom):
        return [((expression, holds),)]
    if isinstance(expression, All) != holds:
        found = [way for one in expression.of for way in alternatives(one, holds=holds)]
        return _bounded(list(dict.fromkeys(found)))
    ways: list[tuple[Literal, ...]] = [()]
    for one in expression.of:
        more = alternatives(one, holds=holds)
        _bounded_count(len(ways) * len(more))
        ways = [tuple(dict.fromkeys((*way, *other))) for way in ways for other in more]
    return [way for way in ways if not any((atom, not wanted) in way for atom, wanted in way)]


def _bounded(ways: list[tuple[Literal, ...]]) -> list[tuple[Literal, ...]]:
    _bounded_count(len(ways))
    return ways


def _bounded_count(count: int) -> None:
    if count > MAX_RULES:
        raise Unsayable(f"more than {MAX_RULES} rules")


def rules(expression: Expression, *, allow: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Rules that match where an expression holds, and what was lost: of rules that allow, ways with something that
    nothing can say are left out; of others that thing is. Raises Unsayable where there are too many ways."""
    found: list[dict[str, Any]] = []
    lost: list[str] = []
    for way in alternatives(expression):
        missing = [atom.lost for atom, _ in way if atom.lost]
        lost += missing
        if missing and allow:
            continue
        try:
            rule = _rule([literal for literal in way if not literal[0].lost])
        except Unsayable as unsayable:
            lost.append(str(unsayable))
            if allow:
                continue
            rule = {}
        if rule not in found:
            found.append(rule)
    return ([{}] if {} in found else found), list(dict.fromkeys(lost))


def _rule(way: Sequence[Literal]) -> dict[str, Any]:
    source: dict[str, list[str]] = {}
    operation: dict[str, list[str]] = {}
    when: list[dict[str, Any]] = []
    conditions: list[str] = []
    for atom, wanted in way:
        place = source if atom.field in SOURCE else operation if atom.field in OPERATION else None
        if not atom.field:
            conditions.append(atom.cel if wanted else f"!({atom.cel})")
        elif place is None:
            when.append({"key": atom.field, "values" if wanted else "notValues": list(atom.values)})
        elif not wanted:
            known = place.setdefault(negation(atom.field), [])
            known += [value for value in atom.values if value not in known]
        elif atom.field not in place:
            place[atom.field] = list(atom.values)
        elif atom.field in _AS_CONDITION:
            when.append({"key": _AS_CONDITION[atom.field], "values": list(atom.values)})
        elif atom.cel:
            conditions.append(atom.cel)
        else:
            raise Unsayable(f"two conditions on {atom.field}")
    rule: dict[str, Any] = {}
    if source:
        rule["from"] = [{"source": source}]
    if operation:
        rule["to"] = [{"operation": operation}]
    if when:
        rule["when"] = when
    if conditions:
        rule["burgee"] = {"condition": _joined(conditions)}
    return rule


def _joined(conditions: Iterable[str]) -> str:
    some = list(dict.fromkeys(conditions))
    text = some[0] if len(some) == 1 else " && ".join(f"({one})" for one in some)
    if len(text) > MAX_CONDITION:
        raise Unsayable("a condition that is too long")
    return text


def quoted(text: str) -> str:
    """A string of CEL's."""
    return json.dumps(text, ensure_ascii=False)


def exact(field: str, subject: str, text: str) -> Atom:
    """The attribute is exactly `text`; `subject` is what CEL calls it."""
    condition = f"{subject} == {quoted(text)}" if subject else ""
    if not text or text.startswith("*") or text.endswith("*") or (field == "paths" and has_braces(text)):
        return _by_condition(condition, f"the value `{text}`")
    return Atom(field, (text,), condition)


def prefix(field: str, subject: str, text: str) -> Atom:
    """It starts so."""
    condition = f"{subject}.startsWith({quoted(text)})" if subject else ""
    if not text or text.startswith("*") or (field == "paths" and has_braces(text)):
        return _by_condition(condition, f"the prefix `{text}`")
    return Atom(field, (f"{text}*",), condition)


def suffix(field: str, subject: str, text: str) -> Atom:
    """It ends so."""
    condition = f"{subject}.endsWith({quoted(text)})" if subject else ""
    if not text or (field == "paths" and has_braces(text)):
        return _by_condition(condition, f"the suffix `{text}`")
    return Atom(field, (f"*{text}",), condition)


def contains(subject: str, text: str) -> Atom:
    """It has that within."""
    return _by_condition(f"{subject}.contains({quoted(text)})" if subject else "", f"a text that contains `{text}`")


def matches(subject: str, expression: str) -> Atom:
    """All of it fits a regular expression."""
    alone = f'"".matches({quoted(expression)})'
    if not subject or not _works(alone):
        return Atom(lost=f"the expression `{expression}`")
    anchored = f"\\A(?:{expression})\\z"
    return _by_condition(f"{subject}.matches({quoted(anchored)})", f"the expression `{expression}`")


def _by_condition(condition: str, what: str) -> Atom:
    if not condition or len(condition) > MAX_CONDITION // 2 or not _compiles(condition):
        return Atom(lost=what)
    return Atom(cel=condition)


def _compiles(condition: str) -> bool:
    try:
        cel.check(condition)
    except cel.ConditionError:
        return False
    return True


def _works(condition: str) -> bool:
    """Whether it can be evaluated at all, as an expression that is no regular one cannot."""
    return _compiles(condition) and cel.compiled(condition)(Request()) is not None


def header_exists(name: str) -> str:
    """CEL for a header that is there."""
    return f"{quoted(name.lower())} in request.headers"


def header_subject(name: str) -> str:
    """What CEL calls a header's value, empty where it is absent."""
    key = quoted(name.lower())
    return f"({key} in request.headers ? request.headers[{key}] : '')"
