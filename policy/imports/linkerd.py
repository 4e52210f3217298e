"""Linkerd's policy: `Server`, `HTTPRoute`, `AuthorizationPolicy`, `MeshTLSAuthentication`, `NetworkAuthentication`.

Linkerd only allows. Each `Server` becomes one ALLOW policy for its pods and its port, with all that is let in to it or
to one of its routes. A request is for the most specific route, so that a route's rules are without what is another's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from policy.documents import read
from policy.fields import Notes, Place
from policy.imports.linkerd_routes import Route, read_route, requests_of
from policy.imports.logic import TRUE, All, Any_, Atom, Expression, Not, Unsayable, rules
from policy.imports.losses import Imported, policy_object
from policy.problems import shown

GROUP, GATEWAY = "policy.linkerd.io", "gateway.networking.k8s.io"
_IDENTITY = re.compile(r"(\*|[a-z0-9.-]+?)\.([a-z0-9-]+)\.serviceaccount\.identity\.[a-z0-9-]+\.([a-z0-9.-]+)")
_LINKERD_S_OWN = "cluster.local"
_ACCESS: dict[str, Expression] = {
    "deny": Any_(),
    "all-unauthenticated": TRUE,
    "all-authenticated": Atom("principals", ("*",)),
}
Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the text does not say. Identities of Linkerd's own domain are written with `trust_domain`."""

    trust_domain: str
    default_policy: str = "all-unauthenticated"


@dataclass(slots=True)
class _Server:
    labels: dict[str, str]
    port: int
    place: Place
    grants: list[Expression] = field(default_factory=list)
    """Who is let in to all of it."""
    route_grants: list[Expression] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)


@dataclass(slots=True)
class _Read:
    """Everything of the texts, before it is put together."""

    options: Options
    found: Imported = field(default_factory=Imported)
    servers: dict[Key, _Server] = field(default_factory=dict)
    lost_servers: set[Key] = field(default_factory=set)
    authentications: dict[tuple[str, str, str], Expression] = field(default_factory=dict)
    routes: dict[Key, list[tuple[Key, Route]]] = field(default_factory=dict)
    """Each with the servers that are its parents."""
    policies: list[tuple[str, dict[str, Place], Place]] = field(default_factory=list)


def import_linkerd(texts: Iterable[tuple[str, str | bytes]], options: Options) -> Imported:
    """Everything in several texts, (source, text) each. Raises Refused."""
    reading = _Read(options)
    notes = Notes("")
    objects: list[tuple[str, str, str, Place, Place]] = []
    for source, text in texts:
        mine = Notes(source, notes.problems, notes.warnings)
        for node in read(text, source):
            objects += _objects(Place(node, mine), reading.found)
    notes.raise_for_problems()
    for kind, namespace, name, spec, place in objects:
        _READERS[kind](reading, namespace, name, spec, place)
    for namespace, fields, place in reading.policies:
        _authorization(reading, namespace, fields, place)
    notes.raise_for_problems()
    if options.default_policy != "deny" and objects:
        text = f"the default policy {shown(options.default_policy)}"
        reading.found.lose("L10", objects[0][4], text)
    for key, server in reading.servers.items():
        _write(reading, key, server)
    notes.raise_for_problems()
    return reading.found


def _objects(place: Place, found: Imported) -> Iterable[tuple[str, str, str, Place, Place]]:
    """(kind, namespace, name, spec, whole) of what is read."""
    value = place.node.value
    if isinstance(value, dict) and "items" in value:
        value = value["items"].value
        place = place.inside("items", place.node.value["items"]) if isinstance(place.node.value, dict) else place
    if isinstance(value, list):
        for item in place.items():
            yield from _objects(item, found)
        return
    fields = place.fields(("apiVersion", "kind", "metadata", "spec", "status"))
    kind, version = ((fields[word].text() or "") if word in fields else "" for word in ("kind", "apiVersion"))
    group = version.partition("/")[0]
    if kind not in _READERS or group not in ((GROUP, GATEWAY) if kind == "HTTPRoute" else (GROUP,)):
        found.lose("L09", place, f"an object of kind {shown(f'{version}/{kind}')}")
        return
    metadata = fields["metadata"].node.value if "metadata" in fields else {}
    texts = {k: v.value for k, v in metadata.items()} if isinstance(metadata, dict) else {}
    name, namespace = texts.get("name"), texts.get("namespace", "default")
    if not isinstance(name, str) or not isinstance(namespace, str):
        place.refuse("P008", "`metadata.name` is missing")
        return
    if "spec" not in fields:
        place.refuse("P005", "there is no `spec`")
        return
    yield kind, namespace, name, fields["spec"], place


def _server(reading: _Read, namespace: str, name: str, spec: Place, place: Place) -> None:
    fields = spec.fields(("podSelector", "externalWorkloadSelector", "port", "proxyProtocol", "accessPolicy"))
    key = (namespace, name)
    reading.lost_servers.add(key)
    selector = fields["podSelector"].fields(("matchLabels", "matchExpressions")) if "podSelector" in fields else {}
    if "podSelector" not in fields or "matchExpressions" in selector:
        reading.found.lose("L02", place, f"the pods of `Server` {shown(name)}")
        return
    port = fields["port"].node.value if "port" in fields else None
    if isinstance(port, bool) or not isinstance(port, int):
        reading.found.lose("L01", fields.get("port", place), f"the port of `Server` {shown(name)}")
        return
    reading.lost_servers.discard(key)
    labels = dict(selector["matchLabels"].labels()) if "matchLabels" in selector else {}
    server = reading.servers[key] = _Server(labels=labels, port=port, place=place)
    access = (fields["accessPolicy"].text() or "") if "accessPolicy" in fields else "deny"
    if access in _ACCESS:
        server.grants.append(_ACCESS[access])
    else:
        reading.found.lose("L03", fields["accessPolicy"], f"the `accessPolicy` {shown(access)}")


def _route(reading: _Read, namespace: str, name: str, spec: Place, place: Place) -> None:
    fields = spec.fields(("parentRefs", "hostnames", "rules"))
    route = read_route(fields, namespace, name, reading.found)
    mine = reading.routes.setdefault((namespace, name), [])
    for parent in fields["parentRefs"].items() if "parentRefs" in fields else []:
        inner = parent.fields(("group", "kind", "name", "namespace", "port", "sectionName"))
        texts = {word: inner[word].text() or "" for word in ("kind", "name", "namespace") if word in inner}
        if texts.get("kind") == "Server":
            mine.append(((texts.get("namespace") or namespace, texts.get("name", "")), route))


def _mesh_tls(reading: _Read, namespace: str, name: str, spec: Place, place: Place) -> None:
    fields = spec.fields(("identities", "identityRefs"))
    principals: list[str] = []
    for item, text in fields["identities"].texts() if "identities" in fields else ():
        principal = _principal(text, reading.options)
        if principal is None:
            reading.found.lose("L05", item, f"the identity {shown(text)}")
        else:
            principals.append(principal)
    for item in fields["identityRefs"].items() if "identityRefs" in fields else []:
        principals += _reference(reading, item, namespace)
    made = Atom("principals", tuple(dict.fromkeys(principals))) if principals else Any_()
    reading.authentications["MeshTLSAuthentication", namespace, name] = made


def _principal(identity: str, options: Options) -> str | None:
    if identity == "*":
        return "*"
    if identity.startswith("spiffe://") and "*" not in identity:
        return identity.removeprefix("spiffe://")
    found = _IDENTITY.fullmatch(identity)
    if found is None:
        return None
    account, namespace, domain = found.groups()
    domain = options.trust_domain if domain == _LINKERD_S_OWN else domain
    return f"{domain}/ns/{namespace}/sa/{account}"


def _reference(reading: _Read, place: Place, namespace: str) -> list[str]:
    fields = place.fields(("group", "kind", "name", "namespace"))
    texts = {word: fields[word].text() or "" for word in fields}
    kind, name, domain = texts.get("kind"), texts.get("name", ""), reading.options.trust_domain
    if kind == "ServiceAccount" and name:
        return [f"{domain}/ns/{texts.get('namespace') or namespace}/sa/{name}"]
    if kind == "Namespace":
        return [f"{domain}/ns/{name or namespace}/sa/*"]
    reading.found.lose("L08", place, f"a reference to {shown(kind or '')}")
    return []


def _network(reading: _Read, namespace: str, name: str, spec: Place, place: Place) -> None:
    fields = spec.fields(("networks",))
    ways: list[Expression] = []
    for item in fields["networks"].items() if "networks" in fields else []:
        inner = item.fields(("cidr", "except"))
        block = _cidr(inner["cidr"]) if "cidr" in inner else None
        but = [text for one in (inner["except"].items() if "except" in inner else []) if (text := _cidr(one))]
        if block is not None:
            ways.append(All((Atom("ipBlocks", (block,)), *([Not(Atom("ipBlocks", tuple(but)))] if but else []))))
    reading.authentications["NetworkAuthentication", namespace, name] = Any_(tuple(ways))


def _cidr(place: Place) -> str | None:
    text = place.filled()
    try:
        return str(ipaddress.ip_network(text or "", strict=False))
    except ValueError:
        place.refuse("P114", f"{shown(text or '')} is neither an address nor a network")
        return None


def _keep(reading: _Read, namespace: str, name: str, spec: Place, place: Place) -> None:
    reading.policies.append((namespace, spec.fields(("targetRef", "requiredAuthenticationRefs")), place))


_READERS = {
    "Server": _server,
    "HTTPRoute": _route,
    "MeshTLSAuthentication": _mesh_tls,
    "NetworkAuthentication": _network,
    "AuthorizationPolicy": _keep,
}


def _authorization(reading: _Read, namespace: str, fields: dict[str, Place], place: Place) -> None:
    who = _required(reading, namespace, fields, place)
    if who is None:
        return
    target = fields["targetRef"].fields(("group", "kind", "name", "namespace")) if "targetRef" in fields else {}
    kind, name = ((target[word].text() or "") if word in target else "" for word in ("kind", "name"))
    if kind == "Server" and (namespace, name) in reading.servers:
        reading.servers[namespace, name].grants.append(who)
    elif kind == "Namespace":
        for (of, _), server in reading.servers.items():
            if of == namespace:
                server.grants.append(who)
    elif kind == "HTTPRoute" and (namespace, name) in reading.routes:
        _let_in_to_route(reading, (namespace, name), who)
    elif (namespace, name) not in reading.lost_servers:
        reading.found.lose("L08", fields.get("targetRef", place), f"the target {shown(f'{kind} {name}')}")


def _let_in_to_route(reading: _Read, key: Key, who: Expression) -> None:
    for server_key, route in reading.routes[key]:
        server = reading.servers.get(server_key)
        if server is not None:
            routes = _routes_of(reading, server_key)
            server.route_grants.append(All((who, requests_of(route, routes, reading.found))))


def _routes_of(reading: _Read, server: Key) -> tuple[Route, ...]:
    return tuple(route for some in reading.routes.values() for parent, route in some if parent == server)


def _required(reading: _Read, namespace: str, fields: dict[str, Place], place: Place) -> Expression | None:
    refs = fields["requiredAuthenticationRefs"].items() if "requiredAuthenticationRefs" in fields else []
    kinds: list[str] = []
    parts: list[Expression] = []
    for ref in refs:
        inner = ref.fields(("group", "kind", "name", "namespace"))
        texts = {word: inner[word].text() or "" for word in inner}
        kind, of, name = texts.get("kind", ""), texts.get("namespace") or namespace, texts.get("name", "")
        kinds.append("NetworkAuthentication" if kind == "NetworkAuthentication" else "identities")
        if kind == "ServiceAccount":
            parts.append(Atom("principals", (f"{reading.options.trust_domain}/ns/{of}/sa/{name}",)))
        elif (kind, of, name) in reading.authentications:
            parts.append(reading.authentications[kind, of, name])
        else:
            reading.found.lose("L08", ref, f"the authentication {shown(f'{kind} {of}/{name}')}")
            return None
    if not parts or len(set(kinds)) != len(kinds):
        reading.found.lose("L04", place, "the authentications that are required")
        return None
    return All(tuple(parts))


def _write(reading: _Read, key: Key, server: _Server) -> None:
    """Where a `Server` has routes, nothing comes to it but what is for one of them."""
    routes = _routes_of(reading, key)
    whole = (
        Any_(tuple(match.let_in for route in routes for match in route.matches if not match.query)) if routes else TRUE
    )
    port = Atom("ports", (str(server.port),))
    ways = tuple(All((one, port)) for one in (*(All((g, whole)) for g in server.grants), *server.route_grants))
    try:
        written, lost = rules(Any_(ways), allow=True)
    except Unsayable as unsayable:
        server.place.refuse("P108", f"`Server` {shown(key[1])} needs {unsayable}")
        return
    for what in lost:
        reading.found.lose("L07", server.place, what)
    scope: dict[str, Any] = {"selector": {"matchLabels": server.labels}} if server.labels else {}
    reading.found.objects.append(policy_object(key[0], f"server-{key[1]}", "ALLOW", written, scope=scope))
