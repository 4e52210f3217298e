"""AuthorizationPolicy: Istio's fields, and ours beside them under the name `burgee`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policy import cel
from policy.clauses import (
    OPERATION,
    SOURCE,
    Convert,
    account,
    clause,
    key_of,
    negation,
)
from policy.documents import Node
from policy.fields import Place
from policy.model import Action, Attribute, Clause, Group, Policy, Rule
from policy.problems import shown
from policy.scopes import OURS, SCOPE_FIELDS, read_scope

MAX_RULES = 512
MAX_ACCOUNTS = 16
Fields = Mapping[str, tuple[Attribute, Convert | None]]

_IDENTITY = frozenset(
    {
        Attribute.SOURCE_PRINCIPAL,
        Attribute.SOURCE_NAMESPACE,
        Attribute.SOURCE_SERVICE_ACCOUNT,
        Attribute.SOURCE_TRUST_DOMAIN,
    }
)


def read_policy(spec: Place, namespace: str, name: str, *, shadow: bool) -> Policy:
    """One AuthorizationPolicy of which the metadata was read."""
    fields = spec.fields((*SCOPE_FIELDS, "action", "rules", "provider", OURS))
    action = _action(fields.get("action"))
    reader = _Rules(namespace, action)
    rules = reader.rules(fields["rules"]) if "rules" in fields else None
    if not rules:
        rules = None
        if action in (Action.DENY, Action.CUSTOM) and reader.count == 0:
            message = f"{action} without rules would never match"
            fields.get("rules", spec).refuse("P102", message, "write `rules: [{}]` for everything")
    return Policy(
        namespace=namespace,
        name=name,
        action=action,
        scope=read_scope(fields),
        rules=rules,
        provider=_provider(fields.get("provider"), fields.get("action", spec), action),
        shadow=shadow,
        origin=spec.origin,
    )


def _action(place: Place | None) -> Action:
    if place is None or (text := place.text()) is None:
        return Action.ALLOW
    if text not in Action.__members__:
        place.refuse("P101", f"there is no action {shown(text)}", "ALLOW, DENY, AUDIT or CUSTOM")
        return Action.ALLOW
    return Action[text]


def _provider(place: Place | None, action_place: Place, action: Action) -> str:
    if place is None:
        if action is Action.CUSTOM:
            action_place.refuse("P103", "CUSTOM needs the name of a provider", "`provider: {name: …}`")
        return ""
    if action is not Action.CUSTOM:
        place.refuse("P104", f"a provider means nothing with {action}", "set `action: CUSTOM`, or leave it out")
    name = place.fields(("name",)).get("name")
    text = name.text() if name is not None else ""
    if not text and action is Action.CUSTOM:
        place.refuse("P103", "CUSTOM needs the name of a provider", "`provider: {name: …}`")
    return text or ""


class _Rules:
    """Reads the rules of one policy."""

    def __init__(self, namespace: str, action: Action) -> None:
        self.action = action
        self.account = account(namespace)
        self.count = 0

    def rules(self, place: Place) -> tuple[Rule, ...]:
        items = place.items()
        self.count = len(items)
        if len(items) > MAX_RULES:
            place.refuse(
                "P108", f"{len(items)} rules", f"a policy has at most {MAX_RULES} rules; write several policies"
            )
        return tuple(rule for item in items[:MAX_RULES] if (rule := self._rule(item)) is not None)

    def _rule(self, place: Place) -> Rule | None:
        if place.node.value is None:
            place.refuse("P109", "a rule must not be null", "`{}` matches everything")
            return None
        fields = place.fields(("from", "to", "when", OURS))
        sources = self._groups(fields.get("from"), "source", SOURCE, "P111")
        operations = self._groups(fields.get("to"), "operation", OPERATION, "P112")
        when = fields["when"].items() if "when" in fields else []
        rule = Rule(
            sources=sources,
            operations=operations,
            conditions=tuple(clause for item in when for clause in self._condition(item)),
            condition=_cel(fields.get(OURS)),
            origin=place.origin,
        )
        if self.action is Action.DENY and _denies_connections(rule):
            hint = "name the ports of HTTP in `to`"
            place.warn("W002", "denies every connection that is not HTTP, whatever it looks at", hint)
        return rule

    def _groups(self, place: Place | None, name: str, known: Fields, empty: str) -> tuple[Group, ...]:
        if place is None:
            return ()
        items = place.items()
        if not items and isinstance(place.node.value, list):
            place.refuse("P110", "must not be empty", "leave it out, and anything matches")
        return tuple(group for item in items if (group := self._group(item, name, known, empty)))

    def _group(self, item: Place, name: str, known: Fields, empty: str) -> Group:
        if item.node.value is None:
            item.refuse("P109", "must not be null")
            return ()
        inner = item.fields((name,)).get(name)
        if inner is None:
            if isinstance(item.node.value, dict):
                item.refuse(empty, f"`{name}` is missing")
            return ()
        names = [form for field in known for form in (field, negation(field))]
        fields = inner.fields(names)
        _check_accounts(inner, fields)
        if isinstance(inner.node.value, dict) and not any(place.node.value for place in fields.values()):
            inner.refuse(empty, f"`{name}` has no field", "leave it out, and anything matches")
        return tuple(self._clauses(known, fields))

    def _clauses(self, known: Fields, fields: Mapping[str, Place]) -> Iterable[Clause]:
        for field, (attribute, convert) in known.items():
            for name, negated in ((field, False), (negation(field), True)):
                if name not in fields:
                    continue
                self._check_custom(fields[name], attribute, name)
                found = clause(fields[name], attribute, (), convert or self.account, negated=negated, origin=name)
                if found is not None:
                    yield found

    def _condition(self, place: Place) -> Iterable[Clause]:
        fields = place.fields(("key", "values", "notValues"))
        key = fields["key"].text() if "key" in fields else ""
        if not key:
            place.refuse("P121", "a condition needs a key")
            return
        lists = [
            (fields[name], negated) for name, negated in (("values", False), ("notValues", True)) if name in fields
        ]
        written = [node.value for values, _ in lists for node in _nodes(values)]
        if not written:
            place.refuse("P125", f"the condition on {shown(key)} has neither `values` nor `notValues`")
        known = key_of(fields["key"], key, [value for value in written if isinstance(value, str)])
        if known is None:
            return
        attribute, inner_key, convert = known
        self._check_custom(fields["key"], attribute, key)
        for values, negated in lists:
            if attribute is Attribute.SOURCE_SERVICE_ACCOUNT:
                _check_count(values)
            found = clause(values, attribute, inner_key, convert or self.account, negated=negated, origin=key)
            if found is not None:
                yield found

    def _check_custom(self, place: Place, attribute: Attribute, name: str) -> None:
        if self.action is Action.CUSTOM and (attribute in _IDENTITY or attribute.needs_jwt):
            place.refuse("P120", f"`{name}` is not known before the provider is asked", "let the provider look at it")


def _nodes(place: Place) -> list[Node]:
    return place.node.value if isinstance(place.node.value, list) else []


def _check_accounts(inner: Place, fields: Mapping[str, Place]) -> None:
    set_fields = {name for name, place in fields.items() if place.node.value}
    accounts = set_fields & {"serviceAccounts", "notServiceAccounts"}
    if accounts and set_fields & {"principals", "notPrincipals", "namespaces", "notNamespaces"}:
        inner.refuse("P118", "`serviceAccounts` cannot stand beside `principals` or `namespaces`")
    for name in accounts:
        _check_count(fields[name])


def _check_count(accounts: Place) -> None:
    if len(_nodes(accounts)) > MAX_ACCOUNTS:
        accounts.refuse("P108", f"more than {MAX_ACCOUNTS} accounts", "write several sources")


def _cel(ours: Place | None) -> str:
    condition = ours.fields(("condition",)).get("condition") if ours is not None else None
    text = condition.filled() if condition is not None else None
    if text is None or condition is None:
        return ""
    try:
        cel.check(text)
    except cel.ConditionError as error:
        condition.refuse("P132", str(error), f"attributes are {', '.join(cel.VARIABLES)}")
    return text


def _denies_connections(rule: Rule) -> bool:
    """Whether sources alone, or operations, are of HTTP only, as Istio warns of it."""
    of_connections = [
        any(not clause.attribute.http_only for group in groups for clause in group)
        for groups in (rule.sources, rule.operations)
    ]
    return bool(
        (rule.sources and not rule.operations and not of_connections[0]) or (rule.operations and not of_connections[1])
    )
