"""Writes policies that allow what a log shows was allowed, and as little else as can be said.

Callers, methods and ports are written out as they were seen together, so that they admit nothing beyond it; what was
only asked about (`evaluate`) was not seen. What admits more is a path that became a template, where stated thresholds
hold, and what no rule looks at (hosts, headers, tokens): both are told with the policies. A record that cannot be
written exactly is left out, with its reason.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from policy.authorization import MAX_RULES
from policy.decision_record import DecisionRecord, Source
from policy.globs import NAMESPACE_MARK
from policy.model import Target
from policy.path_shapes import Shape, Thresholds, shapes, writable
from policy.paths import is_normal
from policy.words import clean
from policy.written import dumped

NOT_LOOKED_AT = ("hosts", "headers", "tokens", "addresses")
"""No suggested rule limits these: whoever is allowed is allowed with any."""
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_METHOD = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")

MAX_PATHS = 50_000
"""Different paths kept for one caller, target and method; what comes after is left out, and said so."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one caller did at one target: the paths of each method and port. A port or method that is not known is None;
    `http` is False for connections."""

    http: bool
    method: str | None
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A path that became a template: `seen` different paths made it, it admits any other of its form."""

    target: str
    callers: tuple[str, ...]
    methods: tuple[str, ...]
    template: str
    seen: int

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "target": self.target,
            "callers": list(self.callers),
            "methods": list(self.methods),
            "template": self.template,
            "seen": self.seen,
        }


@dataclass(slots=True)
class Suggestion:
    """Policies as objects, what they admit beyond the log, and what of the log they leave out."""

    thresholds: Thresholds
    objects: list[dict[str, Any]] = field(default_factory=list)
    records: int = 0
    allowed: int = 0
    """Records of allowed requests, which is what the policies are made from."""
    questions: int = 0
    """Records of what somebody only asked about: nobody did that, so nothing is allowed by it."""
    opened: list[Opened] = field(default_factory=list)
    paths: int = 0
    """Different combinations of caller, target, method and path that were seen."""
    exact: int = 0
    """Those of them that are written out, and admit nothing else."""
    ports: int = 0
    """Callers that are let in by a port alone, since they opened connections that are not HTTP."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Allowed records that the policies do not allow, by reason."""

    def measure(self) -> dict[str, Any]:
        """What the policies admit beyond what was seen. `exact_share` is the part of the different requests that are
        written out: 1.0 is least privilege as far as rules look. `fewest_seen` is the number of paths from which the
        boldest template was concluded. Whoever is let in by a port alone may send anything to it, HTTP as well."""
        return {
            "exact_share": round(self.exact / self.paths, 4) if self.paths else 1.0,
            "templates": len(self.opened),
            "fewest_seen": min((one.seen for one in self.opened), default=None),
            "ports_alone": self.ports,
            "identifiers_needed": self.thresholds.identifiers,
            "words_needed": self.thresholds.words,
            "not_looked_at": list(NOT_LOOKED_AT),
        }

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "objects": self.objects,
            "records": self.records,
            "allowed_records": self.allowed,
            "questions": self.questions,
            "covered_records": self.allowed - self.left_out.total(),
            "over_permission": self.measure(),
            "opened": [one.document() for one in self.opened],
            "left_out": dict(self.left_out),
        }

    def text(self) -> str:
        """YAML, with what was concluded as comments."""
        return "\n".join([*(f"# {line}" for line in self.summary()), self.yaml()])

    def yaml(self) -> str:
        """The policies alone, one document each."""
        return dumped(self.objects)

    def summary(self) -> list[str]:
        """What the policies are made from, what they admit besides, what they lack."""
        covered = self.allowed - self.left_out.total()
        lines = [
            f"From {self.allowed:,} allowed of {self.records:,} recorded requests; {covered:,} are allowed by this."
        ]
        measure = self.measure()
        count = measure["templates"]
        lines.append(
            f"Beyond what was seen it admits: {count} path {'template' if count == 1 else 'templates'} "
            f"({measure['exact_share']:.1%} of the different requests are written out)."
        )
        for one in self.opened[:20]:
            who = f"{len(one.callers)} callers" if len(one.callers) > 1 else clean(one.callers[0])
            lines.append(f"  {'/'.join(map(clean, one.methods))} {one.template} by {who}: {one.seen} paths were seen")
        if len(self.opened) > 20:
            lines.append(f"  … {len(self.opened) - 20} more")
        if self.ports:
            lines.append(f"{self.ports} callers are let in by a port alone, and may send anything to it.")
        lines.append(
            f"A segment of a path is open where {self.thresholds.identifiers} identifiers or {self.thresholds.words} "
            f"different words were seen. Rules do not look at {', '.join(NOT_LOOKED_AT)}."
        )
        if self.questions:
            lines.append(f"Passed over, {self.questions:,} records: what was asked about, and not done.")
        lines += [f"Left out, {count:,} records: {reason}." for reason, count in sorted(self.left_out.items())]
        return lines


def suggest(
    records: Iterable[DecisionRecord], *, targets: Sequence[Target] = (), thresholds: Thresholds | None = None
) -> Suggestion:
    """Policies for the targets of a log. `targets` tell namespaces; where none does, `/ns/<namespace>/` of the ID."""
    found = Suggestion(thresholds or Thresholds())
    namespaces = _namespaces(targets)
    normalized = {one.spiffe_id for one in targets} - {one.spiffe_id for one in targets if not one.normalized}
    seen: dict[str, dict[str | None, dict[Seen, Counter[str]]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        found.records += 1
        if record.source is Source.EVALUATE:
            found.questions += 1
            continue
        if not record.allowed:
            continue
        found.allowed += 1
        if reason := _unsayable(record, namespaces, normalized):
            found.left_out[reason] += 1
            continue
        what = Seen(record.http, record.method if record.http else None, record.port)
        paths = seen[record.target][record.principal].setdefault(what, Counter())
        path = record.path or "" if record.http else ""
        if path in paths or len(paths) < MAX_PATHS:
            paths[path] += 1
        else:
            found.left_out[f"more than {MAX_PATHS:,} different paths of one caller"] += 1
    for target in sorted(seen):
        found.objects += _policies(found, target, _namespace(target, namespaces), seen[target])
    return found


def _namespaces(targets: Sequence[Target]) -> dict[str, str]:
    """Those of IDs that are in one only."""
    found: dict[str, set[str]] = defaultdict(set)
    for target in targets:
        found[target.spiffe_id].add(target.namespace)
    return {spiffe_id: some.pop() if len(some) == 1 else "" for spiffe_id, some in found.items()}


def _namespace(target: str, namespaces: Mapping[str, str]) -> str:
    told = namespaces.get(target)
    return target.partition(NAMESPACE_MARK)[2].partition("/")[0] if told is None else told


def _unsayable(record: DecisionRecord, namespaces: Mapping[str, str], normalized: Set[str]) -> str:
    """Why a record cannot be written as a rule that admits it and nothing else of its kind; empty if it can."""
    if not record.target.startswith("spiffe://") or "*" in record.target or len(record.target) > 2048:
        return "the target is no SPIFFE ID"
    if not _NAMESPACE.fullmatch(_namespace(record.target, namespaces)):
        return "the target's namespace is not known"
    principal = record.principal
    if principal is not None and (not principal or "*" in principal or not _tame(principal)):
        return "the caller's name cannot be written"
    if not record.http:
        return "" if record.port is not None else "a connection whose port is not known"
    if not record.method or not _METHOD.fullmatch(record.method):
        return "the method is not known, or none"
    if not record.path or not writable(record.path) or not _tame(record.path):
        return "the path is not known, or cannot be written"
    if record.target not in normalized and not is_normal(record.path):
        return "the path is not normal, and proxies refuse such where rules look at paths"
    if "path" in record.masked or "method" in record.masked or "principal" in record.masked:
        return "what it was about was masked"
    return ""


def _tame(text: str) -> bool:
    """Whether YAML gives it back as it is, and policies take it."""
    return text.isprintable() and len(text) < 4096


def _policies(
    found: Suggestion, target: str, namespace: str, callers: Mapping[str | None, Mapping[Seen, Counter[str]]]
) -> Iterator[dict[str, Any]]:
    """Of at most so many rules each as one may have."""
    rules = list(_rules(found, target, callers))
    base = re.sub("[^a-z0-9]+", "-", target.removeprefix("spiffe://").rpartition("/")[2].lower()).strip("-")[:60]
    taken = {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in found.objects}
    for at in range(0, len(rules), MAX_RULES):
        name, number = f"suggested-{base or 'target'}", 1
        while (namespace, name) in taken:
            number += 1
            name = f"suggested-{base or 'target'}-{number}"
        taken.add((namespace, name))
        yield {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "action": "ALLOW",
                "burgee": {"spiffeIds": [target]},
                "rules": rules[at : at + MAX_RULES],
            },
        }


Operations = tuple[tuple[tuple[str, tuple[str, ...]], ...], ...]


def _rules(
    found: Suggestion, target: str, callers: Mapping[str | None, Mapping[Seen, Counter[str]]]
) -> Iterator[dict[str, Any]]:
    """Callers that did the same share a rule. Connections have one of their own: from a rule that looks at HTTP,
    nothing is left for them."""
    together: dict[Operations, list[str | None]] = defaultdict(list)
    opened: dict[tuple[tuple[str, ...], str, int], list[str]] = defaultdict(list)
    for caller, seen in callers.items():
        for operations in (_operations(found, seen, caller, opened), _ports(found, seen)):
            if operations:
                together[operations].append(caller)
    for (methods, template, count), who in sorted(opened.items()):
        found.opened.append(
            Opened(target=target, callers=tuple(sorted(who)), methods=methods, template=template, seen=count)
        )
    for operations, some in together.items():
        named = sorted(caller for caller in some if caller is not None)
        sources = [{"source": {"principals": named}}] if named else []
        if None in some:
            sources.append({"source": {"notPrincipals": ["*"]}})
        to = [{"operation": {name: list(texts) for name, texts in operation}} for operation in operations]
        yield {"from": sources, "to": to}


def _operations(
    found: Suggestion,
    seen: Mapping[Seen, Counter[str]],
    caller: str | None,
    opened: dict[tuple[tuple[str, ...], str, int], list[str]],
) -> Operations:
    """Methods and ports with the same paths share an operation."""
    by_paths: dict[tuple[tuple[Shape, ...], int | None], list[str]] = defaultdict(list)
    written: list[tuple[tuple[str, tuple[str, ...]], ...]] = []
    for what, paths in seen.items():
        found.paths += len(paths)
        if what.http:
            by_paths[shapes(paths, found.thresholds), what.port].append(what.method or "")
    for (some, port), methods in by_paths.items():
        methods.sort()
        ports = () if port is None else (("ports", (str(port),)),)
        written.append((("methods", tuple(methods)), ("paths", tuple(shape.text for shape in some)), *ports))
        for shape in some:
            if shape.template:
                opened[tuple(methods), shape.text, shape.seen].append(caller if caller is not None else "no identity")
            else:
                found.exact += len(methods)
    return tuple(sorted(written))


def _ports(found: Suggestion, seen: Mapping[Seen, Counter[str]]) -> Operations:
    """Those of connections that are not HTTP."""
    ports = sorted(str(what.port) for what in seen if not what.http)
    found.exact += len(ports)
    found.ports += len(ports)
    return ((("ports", tuple(ports)),),) if ports else ()
