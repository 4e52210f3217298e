"""Generated policies and requests over few words, so that they meet often, and over the traps that were ever found."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import strategies as st

from policy.model import Action, Attribute, Clause, Group, Match, MatchKind, Mesh, Policy, Request, Rule, Scope, Target

DOMAINS = ("td", "old", "x.td", "other")
NAMESPACES = ("a", "b", "ab", "ns")
ACCOUNTS = ("web", "api", "web2", "sa")
PRINCIPALS = st.one_of(
    st.builds(
        "{}/ns/{}/sa/{}".format, st.sampled_from(DOMAINS), st.sampled_from(NAMESPACES), st.sampled_from(ACCOUNTS)
    ),
    st.sampled_from(
        ["td", "td/", "td/ns/a", "td/ns/a/", "td/x/ns/a/y/sa/web/z", "td/ns/a//sa/web", "td/ns/a/sa/web/", "td/sa/web"]
    ),
)
SEGMENTS = st.sampled_from(["a", "b", "ab", "", "a.b", "x=y", "a*", "é", "a%2Fb"])
PATHS = st.lists(SEGMENTS, max_size=4).map(lambda parts: "/" + "/".join(parts)) | st.sampled_from(["", "*", "/a\n"])
METHODS = st.sampled_from(["GET", "POST", "get", "DELETE"])
HOSTS = st.sampled_from(["a.example", "A.Example", "b.example", "a.example:8080", "", "\u212a.example", "k.example"])
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.1.2", "192.168.0.1", "::1", "fd00::1", "::ffff:10.0.0.1", "nonsense"])
HEADER_VALUES = st.sampled_from(["", "a", "ab", "b", "a,b"])
WORDS = st.sampled_from(["a", "ab", "b", "a b", "", "a\nb", "a/b"])
ISSUERS = st.sampled_from(["https://i.example", "https://i.example/x", "i", ""])
CLAIM_KEYS = st.sampled_from([("groups",), ("scope",), ("n", "m"), ("iss",)])
HEADER_KEYS = st.sampled_from([("x-a",), ("x-b",), ("host",), (":method",), (":path",)])
METADATA_KEYS = st.sampled_from([("envoy.filters.x", "k"), ("envoy.filters.x", "k", "[]")])

TEMPLATES = st.sampled_from(["/a/{*}", "/{*}/b", "/a/{**}", "/{**}/b", "/{**}", "/{*}", "/a/{*}/", "/{*}/{**}/a/b"])
NETWORKS = st.sampled_from(["10.0.0.0/8", "10.0.0.1/32", "192.168.0.0/16", "::/0", "0.0.0.0/0", "fd00::/8"])


def texts(values: st.SearchStrategy[str], wildcard: MatchKind) -> st.SearchStrategy[Match]:
    """Exact, a piece at either end, or the asterisk alone."""

    def cut(text: str, at: int, kind: MatchKind) -> Match:
        piece = text[: 1 + at % len(text)] if kind is MatchKind.PREFIX else text[-1 - at % len(text) :]
        return Match(kind, piece)

    some = values.filter(bool)
    return st.one_of(
        st.builds(Match, st.just(MatchKind.EXACT), some),
        st.builds(cut, some, st.integers(0, 40), st.sampled_from([MatchKind.PREFIX, MatchKind.SUFFIX])),
        st.just(Match(wildcard)),
    )


def _networks(text: str) -> Match:
    return Match(MatchKind.NETWORK, text, ipaddress.ip_network(text))


REQUEST_PRINCIPALS = st.sampled_from(
    ["*", "https://i.example/*", "https://i.example/a", "*/a", "*.example/a", "i*", "*b", "i", "https://i.example/x/a*"]
).map(lambda text: Match(MatchKind.REQUEST_PRINCIPAL, text))
PORTS = st.sampled_from(["80", "8080"]).map(lambda text: Match(MatchKind.EXACT, text))
WILD_NAMESPACES = st.sampled_from(["a", "b", "a*", "*b", "*", "a*b", "x/y"])
WILD_DOMAINS = st.sampled_from(["td", "*td", "t*", "*", "other"])
SERVICE_ACCOUNTS = st.builds("{}/{}".format, st.sampled_from(NAMESPACES), st.sampled_from(ACCOUNTS))

NON_EMPTY, PRESENT = MatchKind.NON_EMPTY, MatchKind.PRESENT
MATCHES: dict[Attribute, st.SearchStrategy[Match]] = {
    Attribute.SOURCE_PRINCIPAL: texts(PRINCIPALS, NON_EMPTY),
    Attribute.SOURCE_NAMESPACE: WILD_NAMESPACES.map(lambda text: Match(MatchKind.NAMESPACE, text)),
    Attribute.SOURCE_SERVICE_ACCOUNT: SERVICE_ACCOUNTS.map(lambda text: Match(MatchKind.SERVICE_ACCOUNT, text)),
    Attribute.SOURCE_TRUST_DOMAIN: WILD_DOMAINS.map(lambda text: Match(MatchKind.TRUST_DOMAIN, text)),
    Attribute.SOURCE_IP: NETWORKS.map(_networks),
    Attribute.REMOTE_IP: NETWORKS.map(_networks),
    Attribute.DESTINATION_IP: NETWORKS.map(_networks),
    Attribute.DESTINATION_PORT: PORTS,
    Attribute.SNI: texts(HOSTS, NON_EMPTY),
    Attribute.METADATA: texts(WORDS, NON_EMPTY),
    Attribute.HOST: texts(HOSTS, PRESENT),
    Attribute.METHOD: texts(METHODS, PRESENT),
    Attribute.PATH: texts(PATHS, NON_EMPTY) | TEMPLATES.map(lambda text: Match(MatchKind.TEMPLATE, text)),
    Attribute.HEADER: texts(HEADER_VALUES, PRESENT),
    Attribute.REQUEST_PRINCIPAL: REQUEST_PRINCIPALS,
    Attribute.REQUEST_AUDIENCES: texts(WORDS, NON_EMPTY),
    Attribute.REQUEST_PRESENTER: texts(WORDS, NON_EMPTY),
    Attribute.CLAIM: texts(WORDS, NON_EMPTY),
}
KEYS = {Attribute.HEADER: HEADER_KEYS, Attribute.CLAIM: CLAIM_KEYS, Attribute.METADATA: METADATA_KEYS}
OPERATIONS = (Attribute.HOST, Attribute.METHOD, Attribute.PATH, Attribute.DESTINATION_PORT)
SOURCES = (
    Attribute.SOURCE_PRINCIPAL,
    Attribute.SOURCE_NAMESPACE,
    Attribute.SOURCE_SERVICE_ACCOUNT,
    Attribute.SOURCE_TRUST_DOMAIN,
    Attribute.SOURCE_IP,
    Attribute.REMOTE_IP,
    Attribute.REQUEST_PRINCIPAL,
)
CONDITIONS = tuple(a for a in Attribute if a not in (Attribute.HOST, Attribute.METHOD, Attribute.PATH))


@st.composite
def clauses(draw: st.DrawFn, attributes: tuple[Attribute, ...]) -> Clause:
    attribute = draw(st.sampled_from(attributes))
    return Clause(
        attribute=attribute,
        key=draw(KEYS.get(attribute, st.just(()))),
        matches=tuple(draw(st.lists(MATCHES[attribute], min_size=1, max_size=3))),
        negated=draw(st.integers(0, 3)) == 0,
    )


def groups(attributes: tuple[Attribute, ...], least: int = 1) -> st.SearchStrategy[Group]:
    return st.lists(clauses(attributes), min_size=least, max_size=3).map(tuple)


RULES = st.builds(
    Rule,
    sources=st.lists(groups(SOURCES), max_size=3).map(tuple),
    operations=st.lists(groups(OPERATIONS), max_size=3).map(tuple),
    conditions=groups(CONDITIONS, 0),
)
SCOPES = st.sampled_from(
    [
        Scope(),
        Scope(),
        Scope(labels=(("app", "x"),)),
        Scope(labels=(("app", "y"),)),
        Scope(spiffe_ids=(Match(MatchKind.PREFIX, "spiffe://td/ns/a/"),)),
        Scope(spiffe_ids=(Match(MatchKind.EXACT, "spiffe://td/ns/b/sa/t"),)),
        Scope(references=(("Gateway", "g"),)),
    ]
)
POLICIES = st.builds(
    Policy,
    namespace=st.sampled_from(["a", "a", "b", "istio-system"]),
    name=st.sampled_from(["p", "q", "r"]),
    action=st.sampled_from([Action.ALLOW, Action.ALLOW, Action.DENY, Action.CUSTOM, Action.AUDIT]),
    scope=SCOPES,
    rules=st.none() | st.lists(RULES, max_size=4).map(tuple),
    provider=st.sampled_from(["known", "other", "unknown"]),
    shadow=st.integers(0, 5).map(lambda n: n == 0),
)
POLICY_SETS = st.lists(POLICIES, max_size=6).map(tuple)
MESH = Mesh(trust_domains=("td", "old"), open_namespaces=frozenset({"b"}), providers=frozenset({"known", "other"}))
TARGETS = (
    Target(spiffe_id="spiffe://td/ns/a/sa/t", namespace="a", labels=(("app", "x"), ("v", "1"))),
    Target(spiffe_id="spiffe://td/ns/b/sa/t", namespace="b", labels=(("app", "y"),)),
    Target(spiffe_id="spiffe://td/ns/a/sa/g", namespace="a", references=(("Gateway", "g"),), waypoint=True),
)


@st.composite
def _claims(draw: st.DrawFn) -> dict[str, Any]:
    many = WORDS | st.lists(WORDS | st.just(1), max_size=3)
    optional = {
        "iss": ISSUERS,
        "sub": WORDS,
        "aud": many,
        "azp": WORDS,
        "groups": many,
        "scope": many,
        "n": st.fixed_dictionaries({}, optional={"m": many}) | WORDS,
    }
    return draw(st.fixed_dictionaries({}, optional=optional))


REQUESTS = st.builds(
    Request,
    principal=st.none() | PRINCIPALS,
    source_ip=st.none() | ADDRESSES,
    remote_ip=st.none() | ADDRESSES,
    destination_ip=st.none() | ADDRESSES,
    destination_port=st.none() | st.sampled_from([80, 8080, 9]),
    sni=st.none() | HOSTS,
    http=st.integers(0, 5).map(lambda n: n > 0),
    method=st.none() | METHODS,
    path=st.none() | PATHS,
    host=st.none() | HOSTS,
    headers=st.dictionaries(st.sampled_from(["x-a", "x-b", ":path"]), HEADER_VALUES),
    claims=st.none() | _claims(),
    metadata=st.fixed_dictionaries(
        {}, optional={"envoy.filters.x": st.fixed_dictionaries({}, optional={"k": WORDS | st.lists(WORDS)})}
    ),
)
