"""AuthZEN 1.0 (OpenID Authorization API): documents as requests to workloads, and decisions as documents.

A subject of type `workload` is a caller by its SPIFFE ID, one of type `anonymous` one without; a resource of type
`workload` is a target by its SPIFFE ID; an action is an HTTP method, or `connect` for a connection of which nothing of
HTTP is known. What else rules look at stands in `properties`. Types that are not known are no error: nobody may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from policy.decision import Decision
from policy.guard import PATH_NOT_NORMAL, refused_unread
from policy.model import PATH_HEADER, Attribute, MatchKind, Request
from policy.paths import without_query
from policy.snapshot import Snapshot

WORKLOAD, ANONYMOUS = "workload", "anonymous"
CONNECT = "connect"
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
SPIFFE = "spiffe://"
MAX_EVALUATIONS = 1000


class Malformed(ValueError):
    """What is wrong in a document, with where: the whole of it is refused (HTTP 400)."""


class Semantic(StrEnum):
    """What ends an evaluation of several."""

    EXECUTE_ALL = "execute_all"
    DENY_ON_FIRST_DENY = "deny_on_first_deny"
    PERMIT_ON_FIRST_PERMIT = "permit_on_first_permit"

    def ends_with(self, decision: bool) -> bool:
        """Whether nothing is evaluated after this decision."""
        return decision is {Semantic.DENY_ON_FIRST_DENY: False, Semantic.PERMIT_ON_FIRST_PERMIT: True}.get(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A subject, a resource, or an action whose `id` is its name."""

    type: str
    id: str
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One evaluation. `subject`, `resource` or `action` is None where it is searched for."""

    subject: Entity | None
    action: Entity | None
    resource: Entity | None

    @property
    def target(self) -> str:
        """Whose policies decide; empty where no workload is meant."""
        return self.resource.id if self.resource is not None and self.resource.type == WORKLOAD else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Several, in their order; what is wrong with one of them stands in its place."""

    items: tuple[Question | Malformed, ...]
    semantic: Semantic = Semantic.EXECUTE_ALL


def read_question(document: Any) -> Question:
    """An Access Evaluation request (§6.1). Raises Malformed. Fields that are not known are passed over."""
    found = _object(document, "the body")
    _context(found)
    return Question(subject=_entity(found, "subject"), action=_action(found), resource=_entity(found, "resource"))


def read_questions(document: Any) -> Questions | Question:
    """An Access Evaluations request (§7.1); without `evaluations`, or with none, it is a single one. Raises Malformed.

    What stands at the top is a default for each item, and is replaced as a whole.
    """
    found = _object(document, "the body")
    items = found.get("evaluations")
    if items is None or items == []:
        return read_question(found)
    if not isinstance(items, list):
        raise Malformed("`evaluations` must be an array")
    if len(items) > MAX_EVALUATIONS:
        raise Malformed(f"more than {MAX_EVALUATIONS} evaluations")
    options = _object(found.get("options", {}), "`options`")
    try:
        semantic = Semantic(options.get("evaluations_semantic", Semantic.EXECUTE_ALL))
    except ValueError:
        known = ", ".join(Semantic)
        raise Malformed(f"`options.evaluations_semantic` must be one of {known}") from None
    defaults = {name: found[name] for name in ("subject", "action", "resource", "context") if name in found}
    for name, read in (("subject", _entity), ("resource", _entity)):
        if name in defaults:
            read(defaults, name)
    if "action" in defaults:
        _action(defaults)
    return Questions(items=tuple(_item(item, defaults) for item in items), semantic=semantic)


def _item(item: Any, defaults: Mapping[str, Any]) -> Question | Malformed:
    try:
        return read_question({**defaults, **_object(item, "an evaluation")})
    except Malformed as error:
        return error


class Wanted(StrEnum):
    """What is searched for (§8)."""

    SUBJECT = "subject"
    RESOURCE = "resource"
    ACTION = "action"


def read_search(document: Any, wanted: Wanted) -> Question:
    """A search request: the id of what is searched for is passed over, its type is needed. Raises Malformed."""
    found = _object(document, "the body")
    _context(found)
    return Question(
        subject=_entity(found, "subject", searched=wanted is Wanted.SUBJECT),
        action=None if wanted is Wanted.ACTION else _action(found),
        resource=_entity(found, "resource", searched=wanted is Wanted.RESOURCE),
    )


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Malformed(f"{what} must be a JSON object")
    return value


def _context(found: Mapping[str, Any]) -> None:
    if "context" in found:
        _object(found["context"], "`context`")


def _entity(found: Mapping[str, Any], name: str, *, searched: bool = False) -> Entity:
    if name not in found:
        raise Malformed(f"`{name}` is missing")
    value = _object(found[name], f"`{name}`")
    id = "" if searched else _text(value, "id", name)
    return Entity(type=_text(value, "type", name), id=id, properties=_properties(value, name))


def _action(found: Mapping[str, Any]) -> Entity:
    if "action" not in found:
        raise Malformed("`action` is missing")
    value = _object(found["action"], "`action`")
    return Entity(type="", id=_text(value, "name", "action"), properties=_properties(value, "action"))


def _text(value: Mapping[str, Any], name: str, of: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise Malformed(f"`{of}.{name}` is missing" if name not in value else f"`{of}.{name}` must be a string")
    return found


def _properties(value: Mapping[str, Any], of: str) -> Mapping[str, Any]:
    return _object(value["properties"], f"`{of}.properties`") if "properties" in value else {}


def request_of(question: Question) -> Request | None:
    """What is asked for, as policies see it; None where a type is not known, so that nobody may. Raises Malformed where
    a property is not of its type."""
    subject, action, resource = question.subject, question.action, question.resource
    if subject is None or action is None or resource is None or resource.type != WORKLOAD:
        return None
    if subject.type not in (WORKLOAD, ANONYMOUS) or (subject.type == WORKLOAD and not subject.id.startswith(SPIFFE)):
        return None
    connects = action.id == CONNECT
    claims = _of_kind(subject, "subject", "claims", dict)
    headers = _headers(action)
    path = _of_kind(resource, "resource", "path", str)
    path = "/" if path is None else path
    return Request(
        principal=subject.id.removeprefix(SPIFFE) if subject.type == WORKLOAD else None,
        source_ip=_of_kind(subject, "subject", "ip_address", str),
        remote_ip=_of_kind(subject, "subject", "remote_ip_address", str),
        destination_ip=_of_kind(resource, "resource", "ip_address", str),
        destination_port=_port(resource),
        sni=_of_kind(resource, "resource", "sni", str),
        http=not connects,
        method=None if connects else action.id,
        path=None if connects else without_query(path),
        host=None if connects else _of_kind(resource, "resource", "host", str),
        headers={} if connects else {PATH_HEADER: path, **headers},  # as a proxy sends it, with its query
        claims=None if connects else claims,
    )


def _of_kind(entity: Entity, of: str, name: str, kind: type) -> Any:
    value = entity.properties.get(name)
    if value is not None and not isinstance(value, kind):
        raise Malformed(f"`{of}.properties.{name}` must be {_KINDS[kind]}")
    return value


_KINDS: dict[type, str] = {str: "a string", dict: "an object"}


def _port(resource: Entity) -> int | None:
    value = resource.properties.get("port")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536):
        raise Malformed("`resource.properties.port` must be a number from 1 to 65535")
    return value


def _headers(action: Entity) -> dict[str, str]:
    found = _of_kind(action, "action", "headers", dict) or {}
    if not all(isinstance(value, str) for value in found.values()):
        raise Malformed("`action.properties.headers` must be an object of strings")
    return {name.lower(): value for name, value in found.items()}


def with_ids(question: Question, *, subject: str = "", resource: str = "", action: str = "") -> Question:
    """The question with one of those that are searched for in its place."""
    changes: dict[str, Entity] = {}
    if subject and question.subject is not None:
        changes["subject"] = replace(question.subject, id=subject)
    if resource and question.resource is not None:
        changes["resource"] = replace(question.resource, id=resource)
    if action:
        changes["action"] = Entity(type="", id=action, properties={})
    return replace(question, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A decision with why: `reason` is that of the decision, or of its being refused before any rule was asked."""

    allowed: bool
    reason: str
    decision: Decision | None = None


def decide(question: Question, request: Request | None, snapshot: Snapshot) -> Answered:
    """As the faces that proxies ask decide it: paths that proxies read differently are refused where rules look at
    paths, and a decision that needs a provider's consent is one nobody asked it for."""
    if request is None:
        return Answered(allowed=False, reason="UNKNOWN_TYPE")
    if refused_unread(snapshot, question.target, request):
        return Answered(allowed=False, reason=PATH_NOT_NORMAL)
    decision = snapshot.decide(question.target, request)
    if decision.allowed and decision.providers:
        return Answered(allowed=False, reason="PROVIDER_UNAVAILABLE", decision=decision)
    return Answered(allowed=decision.allowed, reason=decision.reason, decision=decision)


def evaluation_document(answered: Answered, *, id: str, revision: int) -> dict[str, Any]:
    """§6.2, with why in its `context`: who may ask may also read the policies."""
    context: dict[str, Any] = {"id": id, "reason": answered.reason, "revision": revision}
    decision = answered.decision
    if decision is not None and decision.policy is not None:
        context |= {"policy": decision.policy, "rule": decision.rule}
    if decision is not None and decision.shadow is not None:
        context["shadow"] = decision.shadow.allowed
    return {"decision": answered.allowed, "context": context}


def error_document(status: int, message: str) -> dict[str, Any]:
    """An item of several that could not be evaluated (§7.2.1)."""
    return {"decision": False, "context": {"error": {"status": status, "message": message}}}


def principals_named(snapshot: Snapshot, target: str) -> Iterator[str]:
    """SPIFFE IDs that a target's policies name exactly, without `spiffe://`; some of them several times."""
    for judge in snapshot.judges(target):
        for policy in judge.policies:
            for rule in policy.rules or ():
                for group in (*rule.sources, rule.conditions):
                    for clause in group:
                        if clause.attribute is Attribute.SOURCE_PRINCIPAL:
                            yield from (m.text for m in clause.matches if m.kind is MatchKind.EXACT and "/" in m.text)


def methods_named(snapshot: Snapshot, target: str) -> set[str]:
    """Methods that its policies name exactly."""
    return {
        match.text
        for judge in snapshot.judges(target)
        for policy in judge.policies
        for rule in policy.rules or ()
        for group in rule.operations
        for clause in group
        if clause.attribute is Attribute.METHOD
        for match in clause.matches
        if match.kind is MatchKind.EXACT
    }
