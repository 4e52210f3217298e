"""Generated policies, and requests to them that a client can send over loopback to a real Envoy."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from policy.envoy import Proxy
from policy.model import (
    PATH_HEADER,
    Action,
    Attribute,
    Clause,
    Group,
    Match,
    MatchKind,
    Mesh,
    Policy,
    Request,
    Rule,
    Target,
)
from policy.paths import is_normal, without_query
from policy.snapshot import compile_set
from tests.policy.strategies import texts
from tests.support.policy_envoy import Call

PORT = "1"
"""In policies: the port that Envoy listens on, which is known once it does."""
IDS = [
    "td/ns/a/sa/x",
    "td/ns/a/sa/y",
    "td/ns/b/sa/x",
    "td/ns/ab/sa/x",
    "old/ns/a/sa/x",
    "o/ns/a/sa/x",
    "td/w/ns/b/sa/x/z",
]
ODD_IDS = ["ns/ns/sa/sa/x", "td"]
CALLERS: list[tuple[str, ...] | None] = [(f"spiffe://{name}",) for name in [*IDS * 4, *ODD_IDS]]
CALLERS += [None, None, (), ("https://td/ns/a/sa/x",)]
CALLERS += [("spiffe://td/ns/a/sa/x", "spiffe://td/ns/b/sa/x"), ("spiffe://td/ns/a/sa/x", "https://x")]
PRINCIPALS = st.sampled_from([*IDS, *ODD_IDS])
PLAIN = [
    "/",
    "/a",
    "/a/b",
    "/ab",
    "/a/",
    "/a/b/c",
    "/A",
    "/x.txt",
    "/a/x.txt",
    "/a/b.txt",
    "/admin",
    "/c/b",
    "/a/*",
    "/a/x=1",
    "/x=1/b",
]
ODD = ["/a//b", "/a/../b", "/a/./b", "/%61", "/a%2fb", "/a/..;/b", "/a\\b", "/a;x/b", "/a%252Fb", "/a/.."]
QUERIES = ["", "", "", "", "?", "?x", "?/admin", "?a.txt", "?a?/b", "?//"]
METHODS = ["GET", "GET", "POST", "PUT", "DELETE"]
HOSTS = ["svc", "SVC", "svc:80", "a.svc", "other"]
VALUES = ["1", "12", "2", "1,2", "21"]
SOURCE_IPS = ["127.0.0.1", "127.0.0.2", "127.1.0.1"]
REMOTE_IPS = ["10.0.0.1", "10.1.0.1", "fd00::1"]
WORDS = ["a", "ab", "b", "a b", "a/b"]
TEMPLATES = ["/a/{*}", "/{*}/b", "/a/{**}", "/{**}/b", "/{*}", "/a/{**}/c", "/{*}/{**}/c"]
NETWORKS = ["127.0.0.1/32", "127.0.0.0/24", "127.0.0.0/8", "10.0.0.0/16", "10.0.0.0/8", "fd00::/8", "0.0.0.0/0"]
CONDITIONS = ['request.method == "GET"', 'request.path.startsWith("/a")', 'request.headers["x-a"] == "1"']

_K = MatchKind


def _matches(kind: MatchKind, values: Sequence[str]) -> st.SearchStrategy[Match]:
    return st.sampled_from([Match(kind, text) for text in values])


_NETWORKS = st.sampled_from([Match(_K.NETWORK, text, ipaddress.ip_network(text)) for text in NETWORKS])
MATCHES: dict[Attribute, st.SearchStrategy[Match]] = {
    Attribute.SOURCE_PRINCIPAL: texts(PRINCIPALS, _K.NON_EMPTY),
    Attribute.SOURCE_NAMESPACE: _matches(_K.NAMESPACE, ["a", "b", "a*", "*b", "sa"]),
    Attribute.SOURCE_SERVICE_ACCOUNT: _matches(_K.SERVICE_ACCOUNT, ["a/x", "b/x", "ns/x"]),
    Attribute.SOURCE_TRUST_DOMAIN: _matches(_K.TRUST_DOMAIN, ["td", "o*", "*", "ns"]),
    Attribute.SOURCE_IP: _NETWORKS,
    Attribute.REMOTE_IP: _NETWORKS,
    Attribute.DESTINATION_IP: _NETWORKS,
    Attribute.DESTINATION_PORT: _matches(_K.EXACT, [PORT, "80"]),
    Attribute.SNI: texts(st.sampled_from(["svc", "other"]), _K.NON_EMPTY),
    Attribute.METADATA: texts(st.sampled_from(WORDS), _K.NON_EMPTY),
    Attribute.HOST: texts(st.sampled_from(HOSTS), _K.PRESENT),
    Attribute.METHOD: texts(st.sampled_from(METHODS), _K.PRESENT),
    Attribute.PATH: texts(st.sampled_from([*PLAIN, "/a?x"]), _K.NON_EMPTY) | _matches(_K.TEMPLATE, TEMPLATES),
    Attribute.HEADER: texts(st.sampled_from(VALUES), _K.PRESENT),
    Attribute.REQUEST_PRINCIPAL: _matches(
        _K.REQUEST_PRINCIPAL, ["*", "https://i/*", "https://i/a", "*/a", "i*", "i/a"]
    ),
    Attribute.REQUEST_AUDIENCES: texts(st.sampled_from(WORDS), _K.NON_EMPTY),
    Attribute.REQUEST_PRESENTER: texts(st.sampled_from(WORDS), _K.NON_EMPTY),
    Attribute.CLAIM: texts(st.sampled_from(WORDS), _K.NON_EMPTY),
}
KEYS = {
    Attribute.HEADER: st.sampled_from([("x-a",), ("x-a",), ("x-b",), ("host",), (":method",), (":path",)]),
    Attribute.CLAIM: st.sampled_from([("groups",), ("n", "m")]),
    Attribute.METADATA: st.sampled_from([("test", "key"), ("test", "key", "[]")]),
}
_A = Attribute
SOURCES = [_A.SOURCE_PRINCIPAL] * 6 + [_A.SOURCE_NAMESPACE, _A.SOURCE_SERVICE_ACCOUNT, _A.SOURCE_TRUST_DOMAIN]
SOURCES += [_A.SOURCE_IP, _A.REMOTE_IP, _A.REQUEST_PRINCIPAL]
OPERATIONS = [_A.PATH] * 4 + [_A.METHOD] * 2 + [_A.HOST, _A.DESTINATION_PORT]
WHEN = [a for a in Attribute if a not in (_A.HOST, _A.METHOD, _A.PATH)] + [_A.HEADER] * 6


_PATHS = texts(st.sampled_from([*PLAIN, "/a?x"]), _K.NON_EMPTY)
_EXACT_WORDS = st.sampled_from(WORDS).map(lambda word: Match(_K.EXACT, word))
_LISTS = (_A.METADATA, _A.REQUEST_AUDIENCES, _A.REQUEST_PRESENTER, _A.CLAIM)
SIMPLE = {
    **MATCHES,
    _A.PATH: _PATHS,
    _A.SOURCE_TRUST_DOMAIN: _matches(_K.TRUST_DOMAIN, ["td", "ns"]),
    _A.REQUEST_PRINCIPAL: _matches(_K.REQUEST_PRINCIPAL, ["https://i/a", "i/a"]),
    **dict.fromkeys(_LISTS, _EXACT_WORDS),
}
"""What every judge can say."""
del SIMPLE[_A.SOURCE_SERVICE_ACCOUNT]


_WITH_QUERIES = texts(st.sampled_from([*PLAIN, "/a?x", "/a/b?x", "/a?/admin"]), _K.PRESENT)


@st.composite
def _clause(draw: st.DrawFn, attributes: list[Attribute], matches: dict[Attribute, Any]) -> Clause:
    attribute = draw(st.sampled_from([a for a in attributes if a in matches]))
    key = draw(KEYS[attribute]) if attribute in KEYS else ()
    values = _WITH_QUERIES if key == (PATH_HEADER,) else matches[attribute]
    return Clause(
        attribute=attribute,
        key=key,
        matches=tuple(draw(st.lists(values, min_size=1, max_size=3))),
        negated=draw(st.sampled_from(range(9))) == 8,
    )


def _one_in(n: int, rare: st.SearchStrategy[Any], common: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(range(n)).flatmap(lambda drawn: rare if drawn == n - 1 else common)


def _rules(matches: dict[Attribute, Any], conditions: list[str]) -> st.SearchStrategy[Rule]:
    def groups(attributes: list[Attribute], least: int = 1) -> st.SearchStrategy[Group]:
        return st.lists(_clause(attributes, matches), min_size=least, max_size=2).map(tuple)

    return st.builds(
        Rule,
        sources=_one_in(8, st.just(()), st.lists(groups(SOURCES), min_size=1, max_size=2).map(tuple)),
        operations=_one_in(8, st.just(()), st.lists(groups(OPERATIONS), min_size=1, max_size=2).map(tuple)),
        conditions=_one_in(4, groups(WHEN, 0), st.just(())),
        condition=st.sampled_from(conditions),
    )


def _policies(rules: st.SearchStrategy[Rule]) -> st.SearchStrategy[list[Policy]]:
    policy = st.builds(
        Policy,
        namespace=st.just("a"),
        name=st.sampled_from(["p", "q"]),
        action=st.sampled_from([Action.ALLOW] * 8 + [Action.DENY] * 3 + [Action.AUDIT]),
        rules=_one_in(12, st.none(), st.lists(rules, min_size=1, max_size=7).map(tuple)),
        shadow=st.sampled_from(range(9)).map(lambda n: n == 8),
    )
    return st.lists(policy, min_size=1, max_size=3)


_SIMPLE = _policies(_rules(SIMPLE, [""]))
_EVERY = _policies(_rules(MATCHES, [""] * 20 + CONDITIONS))
_OTHERS_DECIDE = st.builds(
    Policy,
    namespace=st.just("a"),
    name=st.just("c"),
    action=st.just(Action.CUSTOM),
    rules=st.lists(_rules(MATCHES, [""]), min_size=1, max_size=2).map(tuple),
    provider=st.sampled_from(["known", "unknown"]),
)


def _many(random: Random) -> Any:
    words = random.choices(WORDS, k=random.randrange(3))
    return random.choice([words, random.choice(WORDS)])


def _claims(random: Random) -> dict[str, Any] | None:
    if random.random() < 0.4:
        return None
    every = {
        "iss": random.choice(["https://i", "i"]),
        "sub": random.choice(WORDS),
        "aud": _many(random),
        "azp": random.choice(WORDS),
        "groups": _many(random),
        "n": random.choice([{"m": _many(random)}, {}, "a"]),
    }
    return {name: value for name, value in every.items() if random.random() < 0.8}


def call_of(seed: int) -> Call:
    """A call made of a number: drawing each of its parts would take most of a run."""
    random = Random(seed)
    headers = {"x-a": VALUES, "x-b": VALUES, "x-forwarded-for": REMOTE_IPS}
    return Call(
        case="",
        uris=random.choice(CALLERS),
        method=random.choice(METHODS),
        path=random.choice(PLAIN * 6 + ODD) + random.choice(QUERIES),
        host=random.choice(HOSTS),
        headers={name: random.choice(values) for name, values in headers.items() if random.random() < 0.6},
        source_ip=random.choice([*SOURCE_IPS, SOURCE_IPS[0], SOURCE_IPS[0]]),
        sni=random.choice([None, None, None, "svc", "other"]),
        claims=_claims(random),
        metadata=random.choice([None, _many(random)]),
    )


_WITH_OTHERS = st.builds(lambda policies, custom: [*policies, custom], _EVERY, _OTHERS_DECIDE)
CALLS = st.integers(0, 2**32).map(call_of)


TARGET = Target(spiffe_id="spiffe://td/ns/a/sa/t", namespace="a")


@dataclass(frozen=True)
class Case:
    """Policies for one target, and calls to it."""

    policies: tuple[Policy, ...]
    calls: tuple[Call, ...]
    mesh: Mesh
    proxy: Proxy
    target: Target = TARGET


MESHES = [
    Mesh(trust_domains=("td", "old"), providers=frozenset({"known"}), open_namespaces=frozenset(namespaces))
    for namespaces in ([], [], [], [], ["a"])
]


def cases(calls: int) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        policies=_one_in(5, _one_in(4, _WITH_OTHERS, _EVERY), _SIMPLE).map(tuple),
        calls=st.lists(CALLS, min_size=calls, max_size=calls).map(tuple),
        mesh=st.sampled_from(MESHES),
        proxy=st.sampled_from([Proxy(ext_authz=True, jwt=True)] * 9 + [Proxy(ext_authz=True)]),
    )


def listening_on(case: Case, port: int) -> Case:
    """The case with the port that Envoy listens on."""
    own = Match(MatchKind.EXACT, str(port))

    def group(found: Group) -> Group:
        return tuple(
            replace(c, matches=tuple(own if m.text == PORT else m for m in c.matches))
            if c.attribute is Attribute.DESTINATION_PORT
            else c
            for c in found
        )

    def rule(found: Rule) -> Rule:
        parts = {"sources": found.sources, "operations": found.operations}
        new = {name: tuple(group(g) for g in groups) for name, groups in parts.items()}
        return replace(found, **new, conditions=group(found.conditions))

    policies = (replace(p, rules=None if p.rules is None else tuple(rule(r) for r in p.rules)) for p in case.policies)
    return replace(case, policies=tuple(policies))


def principal_of(uris: tuple[str, ...] | None) -> str | None:
    """The name of a caller with one."""
    found = uris[0] if uris and len(uris) == 1 else ""
    return found.removeprefix("spiffe://") if found.startswith("spiffe://") else None


def request_of(call: Call, port: int) -> Request:
    """What is known of a call once it has come."""
    headers = dict(call.headers)
    return Request(
        principal=principal_of(call.uris),
        source_ip=call.source_ip,
        remote_ip=headers.get("x-forwarded-for", call.source_ip),
        destination_ip="127.0.0.1",
        destination_port=port,
        sni=call.sni,
        method=call.method,
        path=without_query(call.path),
        host=call.host,
        headers={**headers, PATH_HEADER: call.path},
        claims=call.claims,
        metadata={} if call.metadata is None else {"test": {"key": call.metadata}},
    )


def clauses_of(policies: Sequence[Policy]) -> Iterator[Clause]:
    for policy in policies:
        for rule in policy.rules or ():
            for group in (*rule.sources, *rule.operations, rule.conditions):
                yield from group


def refused_unread(case: Case, call: Call) -> bool:
    """Whether a call is refused whatever the policies say: several names, or a path that is not normal."""
    if call.uris and len(call.uris) > 1:
        return True
    enforced = [p for p in case.policies if not p.shadow and p.action is not Action.AUDIT]
    looks = any(c.of_path for c in clauses_of(enforced)) or any(
        "path" in rule.condition for p in enforced for rule in p.rules or ()
    )
    return looks and not case.target.normalized and not is_normal(call.path)


def telling(case: Case) -> bool:
    """Whether the calls of a case are not all decided alike."""
    index = compile_set(case.policies, case.mesh, [case.target])
    return len({index.decide(case.target.spiffe_id, request_of(call, int(PORT))).allowed for call in case.calls}) > 1
