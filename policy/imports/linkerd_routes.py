"""Routes of a Linkerd `Server`: what each is for, without what a more specific one takes from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policy.fields import Place
from policy.imports.logic import (
    TRUE,
    All,
    Any_,
    Atom,
    Expression,
    Not,
    exact,
    header_exists,
    header_subject,
    matches,
    prefix,
)
from policy.imports.losses import Imported
from policy.problems import shown
from policy.templates import has_braces

_PATHS = ("Exact", "PathPrefix", "RegularExpression")
_IN_RULE = ("name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence")


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """One alternative of a route. `query`: it looks at the query besides, which rules do not see."""

    kind: str
    path: str
    method: str
    headers: tuple[Expression, ...]
    query: int
    place: Place
    hosts: Expression = TRUE

    @property
    def let_in(self) -> Expression:
        """The same for its hosts alone."""
        return All((self.hosts, self.what))

    @property
    def rank(self) -> tuple[int, ...]:
        """Gateway API's precedence: the greater is taken. Of regular expressions none is defined."""
        return (self.kind == "Exact", len(self.path), bool(self.method), len(self.headers), self.query)

    @property
    def what(self) -> Expression:
        """Its requests, whatever their query."""
        method = exact("methods", "request.method", self.method) if self.method else TRUE
        return All((_path(self.kind, self.path), method, *self.headers))

    def meets(self, other: RouteMatch) -> bool:
        """Whether a request may be for both, as far as paths and methods tell."""
        if self.method and other.method and self.method != other.method:
            return False
        kinds = {self.kind, other.kind}
        if "RegularExpression" in kinds:
            return True
        if kinds == {"Exact"}:
            return self.path == other.path
        shorter, longer = sorted((self, other), key=lambda match: (match.kind == "Exact", len(match.path)))
        return _under(longer.path, shorter.path)


@dataclass(frozen=True, slots=True)
class Route:
    """An HTTPRoute, as far as a `Server` is its parent."""

    namespace: str
    name: str
    matches: tuple[RouteMatch, ...]


def _under(path: str, start: str) -> bool:
    start = start.rstrip("/")
    return path == start or path.startswith(f"{start}/") or not start


def _path(kind: str, path: str) -> Expression:
    if kind == "Exact":
        return exact("paths", "request.path", path)
    if kind == "RegularExpression":
        return matches("request.path", path)
    start = path.rstrip("/")
    if not start:
        return TRUE
    one, below = exact("paths", "request.path", start), prefix("paths", "request.path", f"{start}/")
    if one.field and below.field and not has_braces(start):
        return Atom("paths", (*one.values, *below.values), f"({one.cel} || {below.cel})")
    return Any_((one, below))


def read_route(spec: dict[str, Place], namespace: str, name: str, found: Imported) -> Route:
    """Its matches; notes what is wrong and states what is lost."""
    some: list[RouteMatch] = []
    names = tuple(text for _, text in spec["hostnames"].texts()) if "hostnames" in spec else ()
    hosts = Atom("hosts", tuple(one for text in names for one in _hosts(text))) if names else TRUE
    rules = spec["rules"].items() if "rules" in spec else []
    for rule in rules:
        fields = rule.fields(_IN_RULE)
        items = fields["matches"].items() if "matches" in fields else []
        some += [_match(item, found) for item in items]
        if not items:
            some.append(RouteMatch("PathPrefix", "/", "", (), 0, rule))
    return Route(namespace, name, tuple(replace(match, hosts=hosts) for match in some))


def _hosts(name: str) -> tuple[str, ...]:
    """A host with any port; of a wildcard, without one."""
    return (name,) if "*" in name else (name, f"{name}:*")


def _match(place: Place, found: Imported) -> RouteMatch:
    fields = place.fields(("path", "headers", "queryParams", "method"))
    kind, path = "PathPrefix", "/"
    if "path" in fields:
        inner = fields["path"].fields(("type", "value"))
        kind = (inner["type"].text() or "") if "type" in inner else kind
        path = (inner["value"].text() or "/") if "value" in inner else path
    if kind not in _PATHS:
        place.refuse("P105", f"there is no kind of path {shown(kind)}", ", ".join(_PATHS))
    if kind == "RegularExpression":
        found.lose("L07", fields["path"], f"the path {shown(path)}")
    queries = fields["queryParams"].items() if "queryParams" in fields else []
    if queries:
        found.lose("L06", fields["queryParams"], "query parameters")
    headers = tuple(_header(item, found) for item in fields["headers"].items()) if "headers" in fields else ()
    method = (fields["method"].text() or "") if "method" in fields else ""
    return RouteMatch(kind, path, method, headers, len(queries), place)


def _header(place: Place, found: Imported) -> Expression:
    fields = place.fields(("type", "name", "value"))
    name, value = ((fields[word].filled() or "") if word in fields else "" for word in ("name", "value"))
    kind = (fields["type"].text() or "") if "type" in fields else "Exact"
    key = f"request.headers[{name.lower()}]"
    if kind == "Exact" and name and value:
        return exact(key, header_subject(name), value)
    if kind != "RegularExpression" or not name or not value:
        place.refuse("P105", "a header has a name, a value and a type that is Exact or RegularExpression")
        return Any_()
    expression = matches(header_subject(name), value)
    if expression.lost:
        found.lose("L07", place, expression.lost)
    return All((Atom(key, ("*",), header_exists(name)), expression))


def requests_of(route: Route, routes: tuple[Route, ...], found: Imported) -> Expression:
    """What comes to a route: its matches, each without those of other routes that are more specific."""
    others = [match for other in routes if other is not route for match in other.matches]
    ways: list[Expression] = []
    for match in route.matches:
        if match.query:
            continue
        taken: list[Expression] = []
        for other in others:
            if not match.meets(other):
                continue
            regular = "RegularExpression" in (match.kind, other.kind)
            if regular or other.rank >= match.rank:
                taken.append(Not(other.what))
            if not regular and other.rank == match.rank and other.headers == match.headers and other.path == match.path:
                found.lose("L11", match.place, f"the route {shown(route.name)} and another match the same")
        ways.append(All((match.let_in, *taken)))
    return Any_(tuple(ways))
