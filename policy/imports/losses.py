"""What an import gives: objects as they are written, and a stated loss for everything that could not be said.

No loss ever allows more than the source did: what of an ALLOW cannot be said is left out, and what of a DENY cannot be
said is denied without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from policy.documents import Node
from policy.fields import Place
from policy.model import Origin
from policy.words import clean, place
from policy.written import dumped

LOSSES: dict[str, str] = {
    "C01": "a source of another peer, partition or sameness group: nobody's ID is known, it is left out",
    "C02": "a token that is asked for: who is allowed with one is left out, who is denied with one is denied",
    "C03": "an expression that our engine does not take",
    "C04": "a wildcard destination beside named ones: written for the named and for the known services alone",
    "L01": "a `Server` whose port is a name",
    "L02": "a `Server` whose pods labels alone do not select",
    "L03": "an `accessPolicy` for the cluster's networks, or that only audits",
    "L04": "an `AuthorizationPolicy` without authentications, or with several of one kind",
    "L05": "an identity that is no service account's, namespace's or SPIFFE ID",
    "L06": "query parameters of a route, which rules do not see",
    "L07": "a route by a regular expression: its precedence is not defined, so the other routes lose what it matches",
    "L08": "a reference to what is not in the text, or that policies cannot be for",
    "L09": "an object of a kind that is not read",
    "L10": "the cluster's default policy: ports without a `Server` are denied",
    "L11": "two routes that match the same: which is older is not told, so neither lets anybody in",
    "E01": "a permission or principal that no rule can ask for",
    "E02": "a name in a certificate that is no SPIFFE ID",
    "E03": "the header `:path`, which has the query as well: write `request.headers[:path]` by hand",
    "E04": "an action that logs and decides nothing",
    "E05": "an expression that our engine does not take",
    "E06": "a condition in Envoy's own attributes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One thing that the source says and the import does not."""

    code: str
    message: str
    origin: Origin

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"code": self.code, "message": self.message, "origin": place(self.origin), "means": LOSSES[self.code]}

    def __str__(self) -> str:
        where = f"{place(self.origin)}: " if place(self.origin) else ""
        return f"{where}{self.code} {self.message}"


@dataclass(slots=True)
class Imported:
    """Objects and losses, in the order of the source."""

    objects: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)

    def lose(self, code: str, place: Place, message: str) -> None:
        """States a loss, once for each place."""
        loss = Loss(code=code, message=clean(message, 300), origin=place.origin)
        if loss not in self.losses:
            self.losses.append(loss)

    def yaml(self) -> str:
        """The objects, one document each."""
        return dumped(self.objects)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"objects": self.objects, "losses": [loss.document() for loss in self.losses]}


def policy_object(
    namespace: str, name: str, action: str, rules: list[dict[str, Any]], *, scope: dict[str, Any], shadow: bool = False
) -> dict[str, Any]:
    """An AuthorizationPolicy. `rules` empty: one that allows nothing."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if shadow:
        metadata["annotations"] = {"istio.io/dry-run": "true"}
    spec: dict[str, Any] = {**scope, "action": action}
    if rules:
        spec["rules"] = rules
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": metadata,
        "spec": spec,
    }


def renamed(node: Node, name: Callable[[str], str], *, keep: frozenset[str] = frozenset()) -> Node:
    """With other keys; those within a mapping that `keep` names stay."""
    if isinstance(node.value, list):
        return Node([renamed(item, name, keep=keep) for item in node.value], node.line, node.column)
    if not isinstance(node.value, dict):
        return node
    found: dict[str, Node] = {}
    for key, inner in node.value.items():
        new = name(key)
        if new in keep and isinstance(inner.value, dict):
            kept = {k: renamed(v, name, keep=keep) for k, v in inner.value.items()}
            found[new] = Node(kept, inner.line, inner.column)
        else:
            found[new] = renamed(inner, name, keep=keep)
    return Node(found, node.line, node.column)
