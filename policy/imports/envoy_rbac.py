"""Envoy's RBAC filter configuration as JSON or YAML: `rules`, and `shadow_rules` as a policy that only decides beside.

Each of its policies matches where one of its permissions and one of its principals does. What the RBAC of a proxy is
for, it does not say: namespace and SPIFFE IDs are given beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from policy.documents import read
from policy.fields import Notes, Place
from policy.imports.envoy_matchers import address, header, in_range, path_template, text
from policy.imports.logic import TRUE, All, Any_, Atom, Expression, Not, Unsayable, rules
from policy.imports.losses import Imported, policy_object, renamed
from policy.problems import shown

_CAPITAL = re.compile("([a-z0-9])([A-Z])")
_FILTER = (
    "@type",
    "rules",
    "shadow_rules",
    "rules_stat_prefix",
    "shadow_rules_stat_prefix",
    "track_per_rule_stats",
    "stat_prefix",
    "enforcement_type",
    "delay_deny",
)
_MATCHERS = ("matcher", "shadow_matcher")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the text does not say: whom the policies are for, and how they are called."""

    namespace: str
    name: str = "rbac"
    spiffe_ids: Sequence[str] = ()


def import_envoy_rbac(texts: Iterable[tuple[str, str | bytes]], options: Options) -> Imported:
    """Everything in several texts, (source, text) each. Raises Refused."""
    found = Imported()
    notes = Notes("")
    for source, content in texts:
        mine = Notes(source, notes.problems, notes.warnings)
        for node in read(content, source):
            _filter(Place(renamed(node, _snake, keep=frozenset({"policies"})), mine), options, found)
    notes.raise_for_problems()
    return found


def _snake(name: str) -> str:
    return name if name.startswith("@") else _CAPITAL.sub(r"\1_\2", name).lower()


def _filter(place: Place, options: Options, found: Imported) -> None:
    value = place.node.value
    if isinstance(value, dict) and "typed_config" in value:
        place = place.fields(("name", "typed_config"))["typed_config"]
        value = place.node.value
    if isinstance(value, dict) and "policies" in value:
        _rbac(place, options, found, shadow=False)
        return
    for name in _MATCHERS:
        if isinstance(value, dict) and name in value:
            place.refuse("P007", f"a `{name}` is not read", "`rules` are")
            return
    fields = place.fields(_FILTER)
    for name in ("rules", "shadow_rules"):
        if name in fields:
            _rbac(fields[name], options, found, shadow=name == "shadow_rules")


def _rbac(place: Place, options: Options, found: Imported, *, shadow: bool) -> None:
    fields = place.fields(("action", "policies", "audit_logging_options"))
    action = (fields["action"].text() or "") if "action" in fields else "ALLOW"
    if action == "LOG":
        found.lose("E04", fields["action"], "it logs and decides nothing")
        return
    if action not in ("ALLOW", "DENY"):
        fields["action"].refuse("P101", f"there is no action {shown(action)}", "ALLOW, DENY or LOG")
        return
    reader = _Reader(found, allow=action == "ALLOW")
    written: list[dict[str, Any]] = []
    policies = fields["policies"].node.value if "policies" in fields else {}
    for name, node in policies.items() if isinstance(policies, dict) else []:
        written += reader.policy(fields["policies"].inside(name, node))
    if not written and action == "DENY":
        return
    name = f"{options.name}{'-deny' if action == 'DENY' else ''}{'-shadow' if shadow else ''}"
    taken = {made["metadata"]["name"] for made in found.objects}
    scope = {"burgee": {"spiffeIds": list(options.spiffe_ids)}} if options.spiffe_ids else {}
    number, unused = 1, name
    while unused in taken:
        number += 1
        unused = f"{name}-{number}"
    found.objects.append(policy_object(options.namespace, unused, action, written, scope=scope, shadow=shadow))


class _Reader:
    """Permissions and principals as conditions; what cannot be said becomes one that is lost."""

    def __init__(self, found: Imported, *, allow: bool) -> None:
        self.found, self.allow = found, allow

    def policy(self, place: Place) -> list[dict[str, Any]]:
        """Its rules."""
        fields = place.fields(("permissions", "principals", "condition", "checked_condition", "cel_config"))
        parts = [
            Any_(tuple(read_one(item) for item in fields[name].items())) if name in fields else Any_()
            for name, read_one in (("permissions", self.permission), ("principals", self.principal))
        ]
        for name in ("condition", "checked_condition"):
            if name in fields:
                self.found.lose("E06", fields[name], "a condition")
                parts.append(Any_((Atom(lost="a condition"),)))
        try:
            return rules(All(tuple(parts)), allow=self.allow)[0]
        except Unsayable as unsayable:
            place.refuse("P108", f"it needs {unsayable}")
            return []

    def lost(self, code: str, place: Place, what: str) -> Atom:
        self.found.lose(code, place, what)
        return Atom(lost=what)

    def told(self, expression: Expression, place: Place) -> Expression:
        """States what of a matcher is lost."""
        stack: list[Expression] = [expression]
        while stack:
            one = stack.pop()
            if isinstance(one, Atom):
                if one.lost:
                    self.found.lose("E05", place, one.lost)
            elif isinstance(one, Not):
                stack.append(one.of)
            else:
                stack += one.of
        return expression

    def _only(self, place: Place) -> tuple[str, Place] | None:
        value = place.node.value
        if not isinstance(value, dict) or len(value) != 1:
            place.refuse("P005", "must be a mapping with one field")
            return None
        ((name, node),) = value.items()
        return name, place.inside(name, node)

    def _joined(
        self, name: str, inner: Place, one: Callable[[Place], Expression], words: tuple[str, str, str, str]
    ) -> Expression | None:
        """`and_…`, `or_…`, `not_…` and `any`."""
        both, either, other, of = words
        if name in (both, either):
            parts = tuple(one(item) for item in inner.fields((of,))[of].items()) if inner.node.value else ()
            return All(parts) if name == both else Any_(parts)
        if name == other:
            return Not(one(inner))
        return (TRUE if inner.boolean() else Any_()) if name == "any" else None

    def permission(self, place: Place) -> Expression:
        """What a request must be."""
        found = self._only(place)
        if found is None:
            return Any_()
        name, inner = found
        joined = self._joined(name, inner, self.permission, ("and_rules", "or_rules", "not_rule", "rules"))
        if joined is not None:
            return joined
        if name == "destination_ip":
            return self.told(address("destination.ip", inner), inner)
        if name == "destination_port":
            return Atom("ports", (str(inner.node.value),))
        if name == "destination_port_range":
            return in_range("destination.port", inner)
        if name == "requested_server_name":
            return self.told(text("connection.sni", "connection.sni", inner), inner)
        if name == "uri_template":
            return self.told(path_template(inner), inner)
        return self._of_both(name, inner, "permission")

    def principal(self, place: Place) -> Expression:
        """Who a caller must be."""
        found = self._only(place)
        if found is None:
            return Any_()
        name, inner = found
        joined = self._joined(name, inner, self.principal, ("and_ids", "or_ids", "not_id", "ids"))
        if joined is not None:
            return joined
        if name in ("direct_remote_ip", "remote_ip"):
            field = "ipBlocks" if name == "direct_remote_ip" else "remoteIpBlocks"
            return self.told(address(field, inner), inner)
        if name == "authenticated":
            return self._authenticated(inner)
        return self._of_both(name, inner, "principal")

    def _of_both(self, name: str, inner: Place, what: str) -> Expression:
        if name == "header":
            if isinstance(inner.node.value, dict) and "name" in inner.node.value:
                of = inner.inside("name", inner.node.value["name"]).text() or ""
                if of.lower() == ":path":
                    return self.lost("E03", inner, "the header `:path`")
            return self.told(header(inner), inner)
        if name == "url_path":
            matcher = inner.fields(("path",)).get("path")
            return self.told(text("paths", "request.path", matcher), inner) if matcher is not None else Any_()
        return self.lost("E01", inner, f"the {what} {shown(name)}")

    def _authenticated(self, place: Place) -> Expression:
        """A name of the certificate; of the names that Envoy looks at, ours are the URIs."""
        matcher = place.fields(("principal_name",)).get("principal_name") if place.node.value else None
        anybody = Atom("principals", ("*",), 'source.principal != ""')
        if matcher is None:
            return self.lost("E01", place, "`authenticated` without a name, which asks for TLS and for no certificate")
        fields = matcher.fields(("exact", "prefix", "suffix", "contains", "safe_regex", "ignore_case"))
        kind = next((kind for kind in ("exact", "prefix") if kind in fields), "")
        written = (fields[kind].text() or "") if kind else ""
        if kind and not written.startswith("spiffe://"):
            return self.lost("E02", matcher, f"the name {shown(written)}")
        whole = '"spiffe://" + source.principal'
        return self.told(All((anybody, text("principals", f"({whole})", matcher, without="spiffe://"))), matcher)
