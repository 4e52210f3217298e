"""Tests of policies: requests with the verdict that somebody wants, decided offline.

A file has a list of cases, or an object with one under `tests`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from policy.decision import Decision, Reason
from policy.documents import Node, read
from policy.explain import UNREAD, Explanation, explain
from policy.fields import Notes, Place
from policy.guard import PATH_NOT_NORMAL
from policy.model import Action, Origin, Request
from policy.problems import shown
from policy.request_text import read_request
from policy.snapshot import Snapshot
from policy.words import clean, place

MAX_NAME = 200
_VERDICTS = {"allow": True, "deny": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request and what is wanted of it. `rule` is `namespace/name` or `namespace/name#number`, empty for any;
    `providers` are those that are asked besides; `shadow` is the verdict with shadow policies, None for any."""

    name: str
    target: str
    request: Request
    allowed: bool
    rule: str = ""
    providers: tuple[str, ...] = ()
    shadow: bool | None = None
    origin: Origin = field(default=Origin(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a case. `wrong` is empty if it passed, else each thing that is not as wanted."""

    case: Case
    decision: Decision
    wrong: tuple[str, ...]
    rule: str
    unread: bool = False
    """A proxy refuses it before any rule."""

    @property
    def allowed(self) -> bool:
        """The verdict."""
        return self.decision.allowed and not self.unread

    @property
    def passed(self) -> bool:
        """Whether everything is as wanted."""
        return not self.wrong

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.case.name,
            "origin": place(self.case.origin),
            "target": self.case.target,
            "passed": self.passed,
            "expected": _word(self.case.allowed),
            "got": _word(self.allowed),
            "reason": PATH_NOT_NORMAL if self.unread else self.decision.reason.value,
            "rule": self.rule,
            "wrong": list(self.wrong),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All results, and the rules of the policies that decided none of them."""

    results: tuple[Result, ...]
    untested: tuple[str, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        """Those that are not as wanted."""
        return tuple(result for result in self.results if not result.passed)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "passed": len(self.results) - len(self.failed),
            "failed": len(self.failed),
            "results": [result.document() for result in self.results],
            "untested_rules": list(self.untested),
        }

    def text(self) -> str:
        """For a person: a line for each failure, and the sum."""
        lines = []
        for result in self.failed:
            where = f"{place(result.case.origin)}  " if place(result.case.origin) else ""
            lines += [f"FAILED  {where}{clean(result.case.name, MAX_NAME)}", *(f"    {one}" for one in result.wrong)]
        lines.append(f"{len(self.results) - len(self.failed)} passed, {len(self.failed)} failed")
        if self.untested:
            few = ", ".join(map(clean, self.untested[:5]))
            more = f", … {len(self.untested) - 5} more" if len(self.untested) > 5 else ""
            lines.append(f"{len(self.untested)} rules decided no test: {few}{more}")
        return "\n".join(lines)

    def junit(self) -> str:
        """JUnit's XML, as CI systems read it."""
        suite = ElementTree.Element(
            "testsuite", name="policy", tests=str(len(self.results)), failures=str(len(self.failed)), errors="0"
        )
        for result in self.results:
            where = clean(result.case.origin.source or "policy", MAX_NAME)
            case = ElementTree.SubElement(
                suite, "testcase", name=clean(result.case.name, MAX_NAME), classname=where, file=where
            )
            case.set("line", str(result.case.origin.line))
            if not result.passed:
                failure = ElementTree.SubElement(case, "failure", message=clean(result.wrong[0], 1000))
                failure.text = "\n".join(clean(one, 1000) for one in result.wrong)
        suites = ElementTree.Element("testsuites")
        suites.append(suite)
        ElementTree.indent(suites)
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'


def read_cases(texts: Iterable[tuple[str, str | bytes]]) -> tuple[Case, ...]:
    """The cases of several texts, (source, text) each. Raises Refused with all that is wrong."""
    found: list[Case] = []
    notes = Notes("")
    for source, text in texts:
        mine = Notes(source, notes.problems, notes.warnings)
        for node in read(text, source):
            place = Place(node, mine)
            inner = place.fields(("tests",)).get("tests") if isinstance(node.value, dict) else place
            if inner is None:
                place.refuse("P005", "there is no list of tests", "write `tests:` and a list")
                continue
            found += [case for item in inner.items() if (case := _case(item)) is not None]
    notes.raise_for_problems()
    return tuple(found)


def _case(item: Place) -> Case | None:
    before = len(item.notes.problems)
    fields = item.fields(("name", "target", "request", "expect", "rule", "providers", "shadow"))
    for name in ("target", "request", "expect"):
        if name not in fields and isinstance(item.node.value, dict):
            item.refuse("P006", f"`{name}` is missing")
    target = (fields["target"].filled() or "") if "target" in fields else ""
    if target and not target.startswith("spiffe://"):
        fields["target"].refuse("P131", f"{shown(target)} is no SPIFFE ID", "write it with `spiffe://`")
    case = Case(
        name=(fields["name"].text() or "") if "name" in fields else f"{item.pointer.rpartition('/')[2]}",
        target=target,
        request=read_request(fields.get("request", item.inside("request", Node({})))),
        allowed=bool(_verdict(fields.get("expect"))),
        rule=(fields["rule"].filled() or "") if "rule" in fields else "",
        providers=tuple(text for _, text in fields["providers"].texts()) if "providers" in fields else (),
        shadow=_verdict(fields["shadow"]) if "shadow" in fields else None,
        origin=item.origin,
    )
    return case if len(item.notes.problems) == before else None


def _verdict(place: Place | None) -> bool | None:
    if place is None or (text := place.text()) is None:
        return None
    if text not in _VERDICTS:
        place.refuse("P005", f"{shown(text)} is no verdict", "`allow` or `deny`")
    return _VERDICTS.get(text)


def run(cases: Sequence[Case], snapshot: Snapshot) -> Report:
    """Every case decided."""
    results = tuple(_result(case, snapshot) for case in cases)
    decided = {result.rule for result in results}
    rules = (
        f"{policy.id}#{number}"
        for policy in snapshot.policies
        if not policy.shadow and policy.action is not Action.AUDIT
        for number in range(len(policy.rules or ()))
    )
    return Report(results=results, untested=tuple(rule for rule in rules if rule not in decided))


def _result(case: Case, snapshot: Snapshot) -> Result:
    found = explain(snapshot, case.target, case.request)
    if found.unread:
        return Result(case=case, decision=found.decision, wrong=tuple(_wrong_unread(case)), rule="", unread=True)
    rule = found.decisive.name if found.decisive is not None else ""
    return Result(case=case, decision=found.decision, wrong=tuple(_wrong(case, found, rule)), rule=rule)


def _wrong_unread(case: Case) -> Iterable[str]:
    if case.allowed:
        yield f"want allow, got deny: {UNREAD}"
    elif case.rule:
        yield f"want it by {clean(case.rule)}, it is by none: {UNREAD}"


def _wrong(case: Case, found: Explanation, rule: str) -> Iterable[str]:
    decision = found.decision
    if decision.allowed != case.allowed:
        yield f"want {_word(case.allowed)}, got {_word(decision.allowed)}: {_why(found, rule)}"
        return
    if case.rule and rule != case.rule and rule.partition("#")[0] != case.rule:
        yield f"want it by {clean(case.rule)}, it is by {rule or decision.reason}"
    if decision.allowed and set(decision.providers) != set(case.providers):
        asked = ", ".join(map(clean, decision.providers)) or "nobody"
        yield f"besides, {asked} must agree, which `providers` of the test does not say"
    shadow = decision if decision.shadow is None else decision.shadow
    if case.shadow is not None and shadow.allowed != case.shadow:
        yield f"want {_word(case.shadow)} with shadow policies, got {_word(shadow.allowed)}"


def _word(allowed: bool) -> str:
    return "allow" if allowed else "deny"


def _why(found: Explanation, rule: str) -> str:
    if found.decision.reason is Reason.NOTHING_ALLOWS and found.nearest:
        miss = found.nearest[0]
        return f"nothing allows it, nearest is {miss}: {'; '.join(map(str, miss.failed))}"
    if found.decision.reason is Reason.UNKNOWN_TARGET:
        return f"nobody described the target {clean(found.target)}"
    return str(found.decisive) if found.decisive is not None else found.decision.reason.value
