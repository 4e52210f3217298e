"""Invariants as they are written: objects of kind `Invariant`, with fields as policies have them, or in short.

    spec: {never: "shop/frontend -> payments/db: POST /pay/*"}

Who: `anybody`, `account`, `namespace/account`, `namespace/*`, or a SPIFFE ID with `spiffe://`, perhaps with `*` at its
end; several with commas. Whom: the same, with `anything`. After a colon come methods and paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from policy.clauses import OPERATION, SOURCE, Convert, account, clause, negation
from policy.documents import Node, TooLarge, of_object
from policy.documents import read as read_documents
from policy.fields import Notes, Place
from policy.model import Attribute, Clause, Group, Match, MatchKind, Origin, Rule
from policy.problems import Problem, Refused, shown

VERSION, KIND = "burgee.io/v1", "Invariant"
MAX_INVARIANTS = 1000
CODES: dict[str, str] = {
    "I001": "not exactly one of `never` and `always`",
    "I002": "a short form that is none",
    "I003": "a protocol that is neither `http` nor `connection`",
    "I004": "more invariants than there may be",
}
"""Beside those of policies, which hold for the fields that are theirs."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_METHOD = re.compile(r"[A-Z][A-Z-]*\*?")
_ANYBODY = frozenset({"anybody", "anyone", "anything", "*"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Whom:
    """Targets, all of which must hold; what is empty is any."""

    spiffe_ids: tuple[Match, ...] = ()
    namespaces: tuple[str, ...] = ()
    """Perhaps with asterisks."""
    accounts: tuple[str, ...] = ()
    """`namespace/account`, as SPIFFE IDs have them in their path."""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """What must `never` be allowed, or (False) always: requests that `rule` matches, to one of `to`."""

    name: str
    never: bool
    rule: Rule
    to: tuple[Whom, ...] = (Whom(),)
    protocols: tuple[bool, ...] = (True, False)
    """HTTP (True), and connections that are not."""
    origin: Origin = field(default=Origin(), compare=False)


def read(text: str | bytes | Any, source: str = "invariants") -> tuple[Invariant, ...]:
    """All invariants of a text, or of an object that was read elsewhere. Raises Refused with all that is wrong."""
    if isinstance(text, str | bytes):
        documents = read_documents(text, source)
    else:
        try:
            documents = [of_object(text)]
        except TooLarge as error:
            raise Refused([Problem("P002", str(error), Origin(source), error.pointer)]) from None
    notes = Notes(source)
    found = [one for node in documents for place in _items(Place(node, notes)) if (one := _invariant(place))]
    names = [one.name for one in found]
    for one in found:
        if names.count(one.name) > 1 and len(names) <= MAX_INVARIANTS:
            notes.problems.append(Problem("P009", f"the invariant {shown(one.name)} is there twice", one.origin))
    if len(found) > MAX_INVARIANTS:
        notes.problems.append(Problem("I004", f"more than {MAX_INVARIANTS} invariants", Origin(source)))
    notes.raise_for_problems()
    return tuple(found)


def _items(place: Place) -> Iterator[Place]:
    value = place.node.value
    if isinstance(value, list):
        yield from place.items()
    elif isinstance(value, dict) and isinstance(value.get("kind"), Node) and value["kind"].value == "List":
        fields = place.fields(("apiVersion", "kind", "metadata", "items"))
        yield from fields["items"].items() if "items" in fields else ()
    else:
        yield place


def _invariant(place: Place) -> Invariant | None:
    fields = place.fields(("apiVersion", "kind", "metadata", "spec"))
    version, kind = ((fields[name].text() or "") if name in fields else "" for name in ("apiVersion", "kind"))
    if (version, kind) != (VERSION, KIND):
        place.refuse("P007", f"objects of kind {shown(f'{version}/{kind}')} are no invariants", f"{KIND} of {VERSION}")
        return None
    metadata = fields["metadata"].fields(("name", "namespace", "labels", "annotations")) if "metadata" in fields else {}
    name, namespace = ((metadata[word].text() or "") if word in metadata else "" for word in ("name", "namespace"))
    if not _NAME.fullmatch(name):
        place.refuse("P008", f"{shown(name)} is no name of an object", "lower-case letters, digits, `-` and `.`")
    if namespace and not _LABEL.fullmatch(namespace):
        place.refuse("P008", f"{shown(namespace)} is no namespace", "lower-case letters, digits and `-`")
    if "spec" not in fields:
        place.refuse("I001", "neither `never` nor `always`", "`spec: {never: …}`")
        return None
    spec = fields["spec"].fields(("never", "always"))
    if len(spec) != 1:
        fields["spec"].refuse("I001", "exactly one of `never` and `always` is needed", "write several invariants")
        return None
    ((word, said),) = spec.items()
    return _Reader(namespace, name, never=word == "never").read(said)


class _Reader:
    """Reads what must never or always be."""

    def __init__(self, namespace: str, name: str, *, never: bool) -> None:
        self.namespace, self.name, self.never = namespace, name, never

    def read(self, place: Place) -> Invariant | None:
        if isinstance(place.node.value, str):
            return self._short(place, place.node.value)
        fields = place.fields(("from", "to", "when"))
        sources = self._groups(fields["from"], SOURCE) if "from" in fields else ()
        protocols: tuple[bool, ...] = (True, False) if self.never else (True,)
        operations: tuple[Group, ...] = ()
        if "when" in fields:
            protocols = self._protocols(fields["when"]) or protocols
            operations = self._groups(fields["when"], OPERATION, "protocol")
        whom = tuple(map(self._whom, _alternatives(fields["to"]))) if "to" in fields else (Whom(),)
        return self._made(place, sources, operations, whom, protocols)

    def _made(
        self,
        place: Place,
        sources: tuple[Group, ...],
        operations: tuple[Group, ...],
        to: tuple[Whom, ...],
        protocols: tuple[bool, ...],
    ) -> Invariant:
        return Invariant(
            name=self.name,
            never=self.never,
            rule=Rule(sources=sources, operations=operations, origin=place.origin),
            to=to,
            protocols=protocols,
            origin=place.origin,
        )

    def _groups(
        self, place: Place, known: dict[str, tuple[Attribute, Convert | None]], *more: str
    ) -> tuple[Group, ...]:
        """Alternatives; none where one of them is anything."""
        groups = [tuple(self._clauses(one, known, more)) for one in _alternatives(place)]
        return () if not all(groups) else tuple(groups)

    def _clauses(
        self, place: Place, known: dict[str, tuple[Attribute, Convert | None]], more: tuple[str, ...]
    ) -> Iterator[Clause]:
        fields = place.fields([*(form for name in known for form in (name, negation(name))), *more])
        for name, (attribute, convert) in known.items():
            for form, negated in ((name, False), (negation(name), True)):
                if form in fields:
                    reading = convert or account(self.namespace)
                    found = clause(fields[form], attribute, (), reading, negated=negated, origin=form)
                    if found is not None:
                        yield found

    def _protocols(self, place: Place) -> tuple[bool, ...]:
        if not isinstance(place.node.value, dict) or "protocol" not in place.node.value:
            return ()
        inner = place.inside("protocol", place.node.value["protocol"])
        text = inner.text()
        if text not in ("http", "connection"):
            inner.refuse("I003", f"there is no protocol {shown(str(text))}", "`http` or `connection`")
        return (text == "http",)

    def _whom(self, place: Place) -> Whom:
        fields = place.fields(("spiffeIds", "namespaces", "serviceAccounts", "labels"))
        ids, namespaces, accounts = (
            list(fields[name].texts()) if name in fields else []
            for name in ("spiffeIds", "namespaces", "serviceAccounts")
        )
        for item, text in ids:
            if not text.startswith("spiffe://") or "*" in text[:-1]:
                item.refuse("P131", f"{shown(text)} is no SPIFFE ID", "perhaps with `*` at its end")
        reading = account(self.namespace)
        read_accounts = [match for item, text in accounts if (match := reading(item, text)) is not None]
        return Whom(
            spiffe_ids=tuple(_id(text) for _, text in ids),
            namespaces=tuple(text for _, text in namespaces),
            accounts=tuple(match.text for match in read_accounts),
            labels=fields["labels"].labels() if "labels" in fields else (),
        )

    def _short(self, place: Place, text: str) -> Invariant | None:
        pair, colon, rest = text.partition(": ")
        who, arrow, whom = pair.partition("->")
        if not arrow or (colon and not rest.strip()):
            place.refuse(
                "I002", f"{shown(text)} is not `who -> whom: methods paths`", "`shop/web -> payments/db: GET /*`"
            )
            return None
        sources = [self._who(place, part.strip()) for part in who.split(",")]
        targets = [self._short_whom(place, part.strip()) for part in whom.split(",")]
        operation = tuple(self._operation(place, rest.replace(",", " ").split()))
        protocols = (True, False) if self.never and not operation else (True,)
        groups = () if not all(sources) else tuple(sources)
        return self._made(place, groups, (operation,) if operation else (), tuple(targets), protocols)

    def _who(self, place: Place, text: str) -> Group:
        if text in _ANYBODY:
            return ()
        if text.startswith("spiffe://"):
            principal = text.removeprefix("spiffe://")
            kind = MatchKind.PREFIX if text.endswith("*") else MatchKind.EXACT
            return (_clause(Attribute.SOURCE_PRINCIPAL, Match(kind, principal.removesuffix("*"))),)
        namespace, name = self._named(place, text)
        if name == "*":
            return (_clause(Attribute.SOURCE_NAMESPACE, Match(MatchKind.NAMESPACE, namespace)),)
        return (_clause(Attribute.SOURCE_SERVICE_ACCOUNT, Match(MatchKind.SERVICE_ACCOUNT, f"{namespace}/{name}")),)

    def _short_whom(self, place: Place, text: str) -> Whom:
        if text in _ANYBODY:
            return Whom()
        if text.startswith("spiffe://"):
            return Whom(spiffe_ids=(_id(text),))
        namespace, name = self._named(place, text)
        return Whom(namespaces=(namespace,)) if name == "*" else Whom(accounts=(f"{namespace}/{name}",))

    def _named(self, place: Place, text: str) -> tuple[str, str]:
        namespace, slash, name = text.rpartition("/")
        namespace = namespace if slash else self.namespace
        if not _LABEL.fullmatch(namespace) or not (name == "*" or _NAME.fullmatch(name)):
            hint = "`namespace/account`, `namespace/*`, a SPIFFE ID, or `account` of the invariant's namespace"
            place.refuse("I002", f"{shown(text)} names nobody", hint)
        return namespace, name

    def _operation(self, place: Place, parts: list[str]) -> Iterable[Clause]:
        methods = [part for part in parts if _METHOD.fullmatch(part)]
        paths = [part for part in parts if part.startswith(("/", "*"))]
        for part in parts:
            if part not in methods and part not in paths:
                place.refuse("I002", f"{shown(part)} is neither a method nor a path", "`GET`, `/orders/*`")
        for attribute, values, name in ((Attribute.METHOD, methods, "methods"), (Attribute.PATH, paths, "paths")):
            node = Node([Node(value, place.node.line, place.node.column) for value in values])
            convert = OPERATION[name][1]
            if values and convert is not None:
                found = clause(
                    Place(node, place.notes, place.pointer), attribute, (), convert, negated=False, origin=name
                )
                if found is not None:
                    yield found


def _alternatives(place: Place) -> list[Place]:
    return place.items() if isinstance(place.node.value, list) else [place]


def _clause(attribute: Attribute, match: Match) -> Clause:
    return Clause(attribute=attribute, matches=(match,), origin="from")


def _id(text: str) -> Match:
    return Match(MatchKind.PREFIX, text[:-1]) if text.endswith("*") else Match(MatchKind.EXACT, text)
