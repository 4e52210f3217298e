"""What policies say, as frozen values: every language is read into these, and every back end is made from them.

Within a clause the values are alternatives; clauses of a source, an operation or a rule's conditions must all hold; the
sources of a rule are alternatives, as are its operations; the rules of a policy are, too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

PATH_HEADER = ":path"
"""By this name conditions on headers see the path with its query, as it was sent or normalized."""
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Action(StrEnum):
    """CUSTOM is asked first, then DENY, then ALLOW; AUDIT decides nothing."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    CUSTOM = "CUSTOM"
    AUDIT = "AUDIT"


class Attribute(StrEnum):
    """What a clause looks at, by the name that conditions use. `HEADER` and `CLAIM` need a key besides."""

    SOURCE_PRINCIPAL = "source.principal"
    """The peer's SPIFFE ID without `spiffe://`; absent for one that showed no certificate."""
    SOURCE_NAMESPACE = "source.namespace"
    SOURCE_SERVICE_ACCOUNT = "source.serviceAccount"
    SOURCE_TRUST_DOMAIN = "source.trustDomain"
    SOURCE_IP = "source.ip"
    REMOTE_IP = "remote.ip"
    REQUEST_PRINCIPAL = "request.auth.principal"
    REQUEST_AUDIENCES = "request.auth.audiences"
    REQUEST_PRESENTER = "request.auth.presenter"
    CLAIM = "request.auth.claims"
    HEADER = "request.headers"
    HOST = "request.host"
    METHOD = "request.method"
    PATH = "request.path"
    DESTINATION_IP = "destination.ip"
    DESTINATION_PORT = "destination.port"
    SNI = "connection.sni"
    METADATA = "experimental.envoy.filters"
    """What another filter of the proxy left: the key is (filter, name), with "[]" besides where lists are meant."""

    @property
    def http_only(self) -> bool:
        """Absent where the protocol is not HTTP."""
        return self in _HTTP_ONLY

    @property
    def needs_jwt(self) -> bool:
        """Absent unless a JWT was verified."""
        return self in _JWT


_JWT = frozenset(
    {Attribute.REQUEST_PRINCIPAL, Attribute.REQUEST_AUDIENCES, Attribute.REQUEST_PRESENTER, Attribute.CLAIM}
)
_HTTP_ONLY = _JWT | {Attribute.HEADER, Attribute.HOST, Attribute.METHOD, Attribute.PATH}


class MatchKind(StrEnum):
    """How a text is compared.

    `*` alone is PRESENT for hosts, headers and methods, which holds for an empty text, too, and NON_EMPTY (the regular
    expression `.+`) for everything else. TEMPLATE is a path with `{*}` (one segment) and `{**}` (any number of them).
    NAMESPACE and TRUST_DOMAIN may have asterisks anywhere; SERVICE_ACCOUNT is `namespace/account`. REQUEST_PRINCIPAL is
    `issuer/subject` as it was written, cut at the last slash.
    """

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENT = "present"
    NON_EMPTY = "non-empty"
    TEMPLATE = "template"
    NAMESPACE = "namespace"
    SERVICE_ACCOUNT = "service account"
    TRUST_DOMAIN = "trust domain"
    REQUEST_PRINCIPAL = "request principal"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Match:
    """One alternative. `text` is as it was written, without the asterisk of a prefix or suffix; `network` is that of a
    NETWORK."""

    kind: MatchKind
    text: str = ""
    network: IpNetwork | None = None

    def __str__(self) -> str:
        """As it is written in a policy."""
        match self.kind:
            case MatchKind.PREFIX:
                return f"{self.text}*"
            case MatchKind.SUFFIX:
                return f"*{self.text}"
            case MatchKind.PRESENT | MatchKind.NON_EMPTY:
                return "*"
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One field of a source or an operation, or one condition. `negated`: none of the alternatives may hold."""

    attribute: Attribute
    matches: tuple[Match, ...]
    negated: bool = False
    key: tuple[str, ...] = ()
    """The header's name, or the path to a claim."""
    origin: str = ""
    """How the field is called where it was written, for explanations: `notPrincipals`, `paths`."""

    @property
    def of_path(self) -> bool:
        """Whether it looks at the path, without its query or with it."""
        return self.attribute is Attribute.PATH or (self.attribute is Attribute.HEADER and self.key == (PATH_HEADER,))


Group = tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written: a file's name (or a request's), line and column from 1; 0 where unknown."""

    source: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`sources` and `operations` are empty where anything will do. `condition` is a CEL expression, empty for none."""

    sources: tuple[Group, ...] = ()
    operations: tuple[Group, ...] = ()
    conditions: Group = ()
    condition: str = ""
    origin: Origin = field(default=Origin(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whom a policy is for, within its namespace (the root namespace is the whole mesh): all, those with all of
    `labels`, those with one of `spiffe_ids`, or those that `references` name."""

    labels: tuple[tuple[str, str], ...] = ()
    spiffe_ids: tuple[Match, ...] = ()
    """EXACT or PREFIX, with `spiffe://`."""
    references: tuple[tuple[str, str], ...] = ()
    """(kind, name) of targetRefs: gateways, waypoints and the services behind them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One AuthorizationPolicy. `rules` None never matches, which of an ALLOW policy denies everything."""

    namespace: str
    name: str
    action: Action = Action.ALLOW
    scope: Scope = Scope()
    rules: tuple[Rule, ...] | None = None
    provider: str = ""
    shadow: bool = False
    """Decides beside the others and enforces nothing."""
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def id(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A workload that is called, as its attested selectors or a Workload object describe it."""

    spiffe_id: str
    """With `spiffe://`."""
    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    references: tuple[tuple[str, str], ...] = ()
    """What it is, for targetRefs: ("Gateway", name)."""
    waypoint: bool = False
    """Policies with labels are not for waypoints."""
    normalized: bool = False
    """Its proxy is declared to normalize paths before rules see them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is known of one request or connection; None is absent. Nothing in it is believed unless it was verified.

    `principal` is the peer's SPIFFE ID without `spiffe://`. `path` is as the proxy's filters see it, normalized and
    without query and fragment. `host` is the authority as it was sent. `headers` have lower-case names; several values
    of one are joined by commas; `:path` and `:scheme` are among them where rules look at them. `claims` are those of a
    verified JWT. `metadata` is what other filters of the proxy left, by filter and name. `http` False: a connection, of
    which nothing of HTTP is known.
    """

    principal: str | None = None
    source_ip: str | None = None
    remote_ip: str | None = None
    destination_ip: str | None = None
    destination_port: int | None = None
    sni: str | None = None
    http: bool = True
    method: str | None = None
    path: str | None = None
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, Any] | None = None
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """What holds for all policies of a revision.

    `trust_domains` are the own one and its aliases, which principals are written with. `root_namespace` is that of
    policies for the whole mesh. Namespaces of `open_namespaces` have Istio's default: a workload that no ALLOW policy
    is for can be called by anybody; of all others it can be called by nobody. `providers` are those that CUSTOM may
    name.
    """

    trust_domains: tuple[str, ...]
    root_namespace: str = "istio-system"
    open_namespaces: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
