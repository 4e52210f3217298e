"""Consul's service intentions: config entries (JSON or YAML), and the objects of kind ServiceIntentions.

Of the intentions for a pair Consul applies one alone, that of the highest precedence: the exact destination before the
wildcard, then the exact source. Here rules are alternatives, so each allows its sources without those that a higher one
is for; what denies is only taken away. A list of permissions is gone through in order: each is for what those before it
are not for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from policy.documents import read
from policy.fields import Notes, Place
from policy.imports.consul_permissions import Permission, allowed_by, read_permissions
from policy.imports.logic import TRUE, All, Any_, Atom, Expression, Not, Unsayable, rules
from policy.imports.losses import Imported, policy_object, renamed
from policy.model import Target
from policy.problems import shown

ANY = "*"
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,128}|\*")
KIND, CRD = "service-intentions", "ServiceIntentions"
IGNORED = (
    *("meta", "description", "createIndex", "modifyIndex", "hash", "type", "precedence", "legacyID", "legacyMeta"),
    *("legacyCreateTime", "legacyUpdateTime", "partition"),
)
Name = tuple[str, str]
"""Namespace and service; ANY in either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the text does not say. `principal` is how a service's SPIFFE ID is written, without `spiffe://`;
    `default_allow` is Consul's own policy where no intention is; `services` are those that are known."""

    trust_domain: str
    principal: str = "{trust_domain}/ns/{namespace}/sa/{service}"
    namespace: str = "default"
    default_allow: bool = False
    services: Sequence[Target] = ()

    def id_of(self, name: Name) -> str:
        """Of a service."""
        return self.principal.format(trust_domain=self.trust_domain, namespace=name[0], service=name[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Intention:
    """One source of one destination. `permissions` None: all or nothing, as `allow` says."""

    source: Name
    allow: bool
    permissions: tuple[Permission, ...] | None = None


@dataclass(slots=True)
class _Read:
    """Intentions by destination."""

    options: Options
    found: Imported = field(default_factory=Imported)
    by_destination: dict[Name, list[Intention]] = field(default_factory=dict)
    places: dict[Name, Place] = field(default_factory=dict)


def import_consul(texts: Iterable[tuple[str, str | bytes]], options: Options) -> Imported:
    """Everything in several texts, (source, text) each. Raises Refused."""
    reading = _Read(options)
    notes = Notes("")
    for source, text in texts:
        mine = Notes(source, notes.problems, notes.warnings)
        for node in read(text, source):
            _add(reading, Place(renamed(node, _lower), mine))
    notes.raise_for_problems()
    _write(reading)
    return reading.found


def _lower(key: str) -> str:
    """`PathExact` and `pathExact` are the same; `HTTP` is `http`."""
    return key.lower() if key.isupper() else key[:1].lower() + key[1:]


def _add(reading: _Read, place: Place) -> None:
    if isinstance(place.node.value, list):
        for item in place.items():
            _add(reading, item)
        return
    fields = place.fields(
        ("apiVersion", "kind", "metadata", "spec", "status", "name", "namespace", "sources", "jwt", *IGNORED)
    )
    kind = (fields["kind"].text() or "") if "kind" in fields else ""
    if kind == CRD:
        spec = fields["spec"].fields(("destination", "sources", "jwt")) if "spec" in fields else {}
        names = spec["destination"].fields(("name", "namespace", *IGNORED)) if "destination" in spec else {}
        _entry(reading, place, names, spec)
    elif kind == KIND:
        _entry(reading, place, fields, fields)
    else:
        place.refuse("P007", f"objects of kind {shown(kind)} are not read", f"{KIND} entries and {CRD} are")


def _entry(reading: _Read, place: Place, names: dict[str, Place], fields: dict[str, Place]) -> None:
    name = (names["name"].filled() or "") if "name" in names else ""
    if not name:
        place.refuse("P008", "the destination has no name")
    namespace = (names["namespace"].text() or "") if "namespace" in names else ""
    destination = _name(place, namespace or (ANY if name == ANY else reading.options.namespace), name)
    reading.places.setdefault(destination, place)
    intentions = reading.by_destination.setdefault(destination, [])
    needs_token = "jwt" in fields
    if needs_token:
        reading.found.lose("C02", fields["jwt"], "a token is asked for whoever calls")
    for item in fields["sources"].items() if "sources" in fields else []:
        intention = _source(reading, item, namespace, needs_token=needs_token)
        if intention is not None:
            intentions.append(intention)


def _source(reading: _Read, place: Place, namespace: str, *, needs_token: bool) -> Intention | None:
    fields = place.fields(("name", "namespace", "action", "permissions", "peer", "samenessGroup", *IGNORED))
    name = (fields["name"].filled() or "") if "name" in fields else ""
    action = (fields["action"].text() or "").lower() if "action" in fields else ""
    if not name:
        place.refuse("P008", "a source has no name")
    if ("permissions" in fields) == bool(action) or action not in ("", "allow", "deny"):
        place.refuse("P101", "a source has either `permissions`, or an `action` that is `allow` or `deny`")
        return None
    permissions = read_permissions(fields["permissions"], reading.found) if "permissions" in fields else None
    for foreign in ("peer", "samenessGroup", "partition"):
        if foreign in fields and fields[foreign].text() not in ("", "default"):
            reading.found.lose("C01", fields[foreign], f"{shown(name)} of another {foreign}")
            return None
    own = (fields["namespace"].text() or "") if "namespace" in fields else namespace
    source = _name(place, own or (ANY if name == ANY else reading.options.namespace), name)
    if needs_token:
        return Intention(source=source, allow=False)
    return Intention(source=source, allow=action == "allow", permissions=permissions)


def _name(place: Place, namespace: str, name: str) -> Name:
    if not all(_WORD.fullmatch(text) for text in (namespace, name)) or (namespace == ANY != name):
        place.refuse("P008", f"{shown(f'{namespace}/{name}')} is no service", "only a whole segment can be `*`")
    return namespace, name


def _covers(wide: Name, narrow: Name) -> bool:
    """Whether a name with wildcards stands for another."""
    return wide[0] in (ANY, narrow[0]) and wide[1] in (ANY, narrow[1])


def _exactness(name: Name) -> int:
    return (name[0] != ANY) + (name[1] != ANY)


def _write(reading: _Read) -> None:
    options = reading.options
    if options.default_allow and reading.places:
        reading.places.setdefault((ANY, ANY), next(iter(reading.places.values())))
        reading.by_destination.setdefault((ANY, ANY), []).append(Intention(source=(ANY, ANY), allow=True))
    named = [name for name in reading.by_destination if ANY not in name]
    wild = sorted((name for name in reading.by_destination if ANY in name), key=_exactness, reverse=True)
    for target in options.services:
        service = (target.namespace, target.spiffe_id.rpartition("/")[2])
        if service not in named and any(_covers(name, service) for name in wild):
            named.append(service)
    for name in named:
        _policy(reading, name, [name, *(w for w in wild if _covers(w, name))])
    for name in wild:
        if any(_covers(name, other) for other in (*named, *wild) if other != name):
            text = f"the destination {shown('/'.join(name))} beside those that are named"
            reading.found.lose("C04", reading.places[name], text)
        else:
            _policy(reading, name, [name, *(w for w in wild if w != name and _covers(w, name))])


def _policy(reading: _Read, name: Name, destinations: Sequence[Name]) -> None:
    """Everything about one destination, the more exact destinations first."""
    ordered = [
        intention
        for destination in destinations
        for intention in sorted(reading.by_destination.get(destination, ()), key=lambda i: -_exactness(i.source))
    ]
    ways: list[Expression] = []
    for number, intention in enumerate(ordered):
        if intention.permissions is None and not intention.allow:
            continue
        higher = {other.source for other in ordered[:number]}
        if any(_covers(other, intention.source) for other in higher):
            continue
        source = _of(reading.options, intention.source)
        others = [Not(_of(reading.options, other)) for other in sorted(higher) if _covers(intention.source, other)]
        what: Expression = TRUE
        if intention.permissions is not None:
            what = allowed_by(intention.permissions, default=reading.options.default_allow)
        ways.append(All((source, *others, what)))
    try:
        written, lost = rules(Any_(tuple(ways)), allow=True)
    except Unsayable as unsayable:
        place = _place(reading, destinations)
        place.refuse("P108", f"the destination {shown('/'.join(name))} needs {unsayable}")
        place.notes.raise_for_problems()
        raise
    for what_is_lost in lost:
        reading.found.lose("C03", _place(reading, destinations), what_is_lost)
    reading.found.objects.append(_object(reading.options, name, written))


def _place(reading: _Read, destinations: Sequence[Name]) -> Place:
    return next(reading.places[name] for name in destinations if name in reading.places)


def _of(options: Options, name: Name) -> Atom:
    """A source. Everybody is everybody of the own trust domain: peers are not meant."""
    if ANY not in name:
        return Atom("principals", (options.id_of(name),))
    return Atom("trustDomains", (options.trust_domain,)) if name[0] == ANY else Atom("namespaces", (name[0],))


def _object(options: Options, name: Name, written: list[dict[str, Any]]) -> dict[str, Any]:
    namespace = options.namespace if name[0] == ANY else name[0]
    scope: dict[str, Any] = {}
    label = "everything"
    if name[1] != ANY:
        label = re.sub("[^a-z0-9]+", "-", name[1].lower()).strip("-") or "service"
        scope = {"burgee": {"spiffeIds": [f"spiffe://{options.id_of(name)}"]}}
    return policy_object(namespace, f"intentions-{label}", "ALLOW", written, scope=scope)
