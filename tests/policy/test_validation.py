"""Every row of the validation table refuses what it says, at the place where it stands, and the page has every row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from policy.documents import MAX_BYTES
from policy.parse import PolicySet, parse, parse_all, parse_object
from policy.problems import CODES, HINTS, WARNINGS, Refused

PAGE = Path(__file__).parents[2] / "docs/policy/language.md"

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: n}\n"
JWT = HEAD.replace("AuthorizationPolicy", "RequestAuthentication")
PEER = HEAD.replace("AuthorizationPolicy", "PeerAuthentication")


def source(fields: str, action: str = "ALLOW", more: str = "") -> str:
    return f"{HEAD}spec: {{action: {action}, rules: [{{from: [{{source: {fields}}}]}}]{more}}}\n"


def operation(fields: str) -> str:
    return f"{HEAD}spec: {{rules: [{{to: [{{operation: {fields}}}]}}]}}\n"


def when(condition: str) -> str:
    return f"{HEAD}spec: {{rules: [{{when: [{condition}]}}]}}\n"


def custom(rule: str) -> str:
    return f"{HEAD}spec: {{action: CUSTOM, provider: {{name: x}}, rules: [{rule}]}}\n"


def jwt(rule: str) -> str:
    return f"{JWT}spec: {{jwtRules: [{rule}]}}\n"


REFUSED: dict[str, list[str | bytes]] = {
    "P001": [b"a: \xff", "a: [", "a: 'x\x00'", "{", '{"a": "\\ud800"}', "%YAML 9\n---"],
    "P002": ["a: " + "[" * 40 + "]" * 40, "a: '" + "x" * 70_000 + "'"],
    "P003": [f"{HEAD}spec: &a {{}}", f"{HEAD}spec: *a", f"{HEAD}spec: !!map {{}}", "!!python/object:os.system {}"],
    "P004": [f"{HEAD}spec: {{action: ALLOW, action: DENY}}"],
    "P005": [
        "just text",
        f"{HEAD}spec: []",
        f"{HEAD}spec: {{rules: x}}",
        operation("{ports: [80]}"),
        operation("{methods: GET}"),
        operation("{methods: [NO]}"),
        "? [a]\n: b",
    ],
    "P006": [f"{HEAD}spec: {{rule: []}}", source("{principal: [a]}"), f"{HEAD}spec: {{<<: {{action: DENY}}}}"],
    "P007": [
        "kind: Pod\napiVersion: v1",
        HEAD.replace("/v1", "/v2"),
        HEAD.replace("security.istio.io/v1", "burgee.io/v1"),
    ],
    "P008": [
        HEAD.replace("name: p, ", ""),
        HEAD.replace("namespace: n", "namespace: ''"),
        HEAD.replace("name: p", "name: A/b"),
    ],
    "P009": [f"{HEAD}---\n{HEAD}"],
    "P101": [f"{HEAD}spec: {{action: allow}}"],
    "P102": [f"{HEAD}spec: {{action: DENY}}", f"{HEAD}spec: {{action: CUSTOM, provider: {{name: x}}, rules: []}}"],
    "P103": [f"{HEAD}spec: {{action: CUSTOM, rules: [{{}}]}}", custom("{}").replace("{name: x}", "{name: ''}")],
    "P104": [f"{HEAD}spec: {{provider: {{name: x}}, rules: [{{}}]}}"],
    "P105": [
        f"{HEAD}spec: {{selector: {{matchLabels: {{a: b}}}}, targetRef: {{kind: Service, name: s}}}}",
        f"{HEAD}spec: {{targetRef: {{kind: Service, name: s}}, targetRefs: [{{kind: Service, name: s}}]}}",
    ],
    "P106": [f"{HEAD}spec: {{selector: {{matchLabels: {labels}}}}}" for labels in ("{'': b}", "{a: 'b*'}", "{'*': b}")],
    "P107": [
        f"{HEAD}spec: {{targetRef: {reference}}}"
        for reference in (
            "{kind: Service}",
            "{kind: Service, name: s, namespace: other}",
            "{kind: Pod, name: s}",
            "{kind: Gateway, group: networking.istio.io, name: g}",
        )
    ],
    "P108": [
        f"{HEAD}spec: {{rules: [{', '.join(['{}'] * 513)}]}}",
        f"{HEAD}spec: {{targetRefs: [{', '.join(['{kind: Service, name: s}'] * 17)}]}}",
        source(f"{{serviceAccounts: [{', '.join(f's{n}' for n in range(17))}]}}"),
        when(f"{{key: source.serviceAccount, notValues: [{', '.join(f's{n}' for n in range(17))}]}}"),
    ],
    "P109": [
        f"{HEAD}spec: {{rules: [null]}}",
        f"{HEAD}spec: {{rules: [{{from: [null]}}]}}",
        f"{HEAD}spec: {{rules: [{{to: [null]}}]}}",
    ],
    "P110": [f"{HEAD}spec: {{rules: [{{from: []}}]}}", f"{HEAD}spec: {{rules: [{{to: []}}]}}"],
    "P111": [f"{HEAD}spec: {{rules: [{{from: [{{}}]}}]}}", source("{}"), source("{principals: []}")],
    "P112": [f"{HEAD}spec: {{rules: [{{to: [{{}}]}}]}}", operation("{}"), operation("{notPaths: []}")],
    "P113": [
        *(source(f"{{{f}: ['']}}") for f in ("principals", "requestPrincipals", "namespaces", "notPrincipals")),
        *(source(f"{{{f}: ['']}}") for f in ("ipBlocks", "notRemoteIpBlocks", "serviceAccounts", "trustDomains")),
        *(operation(f"{{{f}: ['']}}") for f in ("methods", "paths", "hosts", "ports", "notHosts", "notMethods")),
        when("{key: source.principal, values: ['']}"),
    ],
    "P114": [
        *(
            source(f"{{ipBlocks: ['{a}']}}")
            for a in ("1.2.3", "1.2.3.4/33", "a", "10.0.0.0/255.0.0.0", "::1/129", "1/")
        ),
        when("{key: remote.ip, notValues: [x]}"),
        when("{key: destination.ip, values: ['1.2.3.4/08']}"),
    ],
    "P115": [operation(f"{{ports: ['{port}']}}") for port in ("http", "65536", "-1", "+8", "8.0", "٣")],
    "P116": [
        *(operation(f"{{paths: ['{p}']}}") for p in ("/{*}/{x}", "/*/{*}", "/{**}/**", "/{}/{*}", "/{a=*}/{*}")),
        *(operation(f"{{notPaths: ['{p}']}}") for p in ("/{**}/{*}", "/{**}/{**}", "/{**}/a/{*}", "/{*}x/y", "/a{*}")),
        *(operation(f"{{paths: ['{p}']}}") for p in ("/{*}.txt", "/a/{id}", "/a}", "/{***}", "/a b/{*}", "/a//{*}")),
        *(operation(f"{{paths: ['{p}']}}") for p in ("/a?/{*}", "/é/{**}", "/a*/{*}", "/{*}/b*", "{*}{*}", "*/{*}")),
    ],
    "P117": [operation(f"{{notPaths: ['{p}']}}") for p in ("{*}/a", "{**}", "//{*}", "/{*}//")],
    "P118": [source("{serviceAccounts: [a], principals: [b]}"), source("{notServiceAccounts: [a], namespaces: [b]}")],
    "P119": [source(f"{{serviceAccounts: ['{a}']}}") for a in ("a*", "a/b/c", "/a", "a/", "a" * 321)],
    "P120": [
        *(
            custom(f"{{from: [{{source: {{{f}: [a]}}}}]}}")
            for f in ("principals", "notNamespaces", "requestPrincipals")
        ),
        *(custom(f"{{from: [{{source: {{{f}: [a]}}}}]}}") for f in ("serviceAccounts", "trustDomains")),
        custom("{when: [{key: source.principal, values: [a]}]}"),
        custom("{when: [{key: 'request.auth.claims[a]', values: [a]}]}"),
    ],
    "P121": [when("{values: [a]}"), when("{key: '', values: [a]}")],
    "P122": [when("{key: source.user, values: [a]}"), when("{key: request.header, values: [a]}")],
    "P123": [
        when(f"{{key: '{key}', values: [a]}}")
        for key in (
            *("request.headers", "request.headers[]", "request.headers[a", "request.headersx[a]"),
            *("request.headers[a][b]", "request.auth.claims[a]b]", "experimental.envoy.filters.x"),
        )
    ],
    "P124": [
        when(f"{{key: '{key}', values: [a]}}")
        for key in ("destination.namespace", "destination.labels[a]", "destination.name", "destination.user")
    ],
    "P125": [when("{key: source.principal}"), when("{key: source.principal, values: [], notValues: []}")],
    "P126": [when("{key: 'experimental.envoy.filters.a[b]', values: ['[a]', b]}")],
    "P127": [when(f"{{key: 'request.headers[{name}]', values: [a]}}") for name in ("x y", ":status", "é", "x:y", "(x)")]
    + [when('{key: "request.headers[a\\nb]", values: [a]}')],
    "P131": [
        f"{HEAD}spec: {{burgee: {{spiffeIds: [td/ns/a]}}}}",
        f"{HEAD}spec: {{burgee: {{spiffeIds: ['spiffe://td/*/a']}}}}",
        f"{HEAD}spec: {{burgee: {{spiffeIds: ['spiffe://td/a']}}, selector: {{matchLabels: {{a: b}}}}}}",
        "apiVersion: burgee.io/v1\nkind: Workload\nmetadata: {name: w, namespace: n}\nspec: {}",
    ],
    "P132": [
        f'{HEAD}spec: {{rules: [{{burgee: {{condition: "{condition}"}}}}]}}'
        for condition in ("1 +", "nope", "request.method", "request.method == 1", "true" + " || true" * 900, "(" * 400)
    ],
    "P201": [jwt("{}"), jwt('{issuer: "a\\nb"}')],
    "P202": [jwt("{issuer: a, audiences: ['']}")],
    "P203": [jwt(f"{{issuer: a, jwksUri: '{uri}'}}") for uri in ("ftp://keys.example", "keys", "http://[", "https://")],
    "P204": [jwt("{issuer: a, jwksUri: 'https://keys.example/jwks'}")],
    "P205": [jwt(f"{{issuer: a, jwks: '{jwks}'}}") for jwks in ("x", "[]", '{"keys": [1]}', "[" * 5000)],
    "P206": [
        jwt("{issuer: a, fromHeaders: [{prefix: x}]}"),
        jwt("{issuer: a, fromParams: ['']}"),
        jwt("{issuer: a, fromCookies: ['']}"),
    ],
    "P207": [
        jwt("{issuer: a, outputClaimToHeaders: [{claim: x}]}"),
        jwt("{issuer: a, outputClaimToHeaders: [{claim: x, header: 'a b'}]}"),
    ],
    "P208": [jwt("{issuer: a, timeout: 5}"), jwt("{issuer: a, timeout: '0s'}"), jwt("{issuer: a, timeout: x}")],
    "P301": [f"{PEER}spec: {{mtls: {{mode: strict}}}}"],
    "P302": [f"{PEER}spec: {{portLevelMtls: {{80: {{mode: STRICT}}}}}}"],
    "P303": [
        f"{PEER}spec: {{selector: {{matchLabels: {{a: b}}}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}"
        for port in ("0", "65536", "http")
    ],
    "P304": [f"{PEER}spec: {{mtls: {{mode: DISABLE}}}}"],
}
WARNED = {
    "W001": f"{HEAD}spec: {{selector: {{}}}}",
    "W002": f"{HEAD}spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [/a]}}}}]}}]}}",
    "W003": source("{principals: ['spiffe://td/ns/a/sa/b']}"),
}
TAKEN = [
    HEAD,
    f"{HEAD}spec: {{}}",
    f"{HEAD}spec: null",
    f"{HEAD}spec: {{rules: []}}",
    f"{HEAD}spec: {{rules: [{{}}]}}",
    f"{HEAD}spec: {{action: DENY, rules: [{{}}]}}",
    f"{HEAD}spec: {{action: AUDIT}}",
    custom(
        "{from: [{source: {ipBlocks: [1.2.3.4], notRemoteIpBlocks: ['::/0']}}], to: [{operation: {paths: ['/a*']}}]}"
    ),
    f"{HEAD}spec: {{targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: g}}]}}",
    source("{principals: ['*'], namespaces: ['a*'], notRequestPrincipals: ['*'], notIpBlocks: ['10.1.2.3/8']}"),
    source("{serviceAccounts: [a, b/c], requestPrincipals: ['a/b']}"),
    operation("{hosts: ['*.a'], notHosts: [b], ports: ['080'], methods: ['*'], paths: ['/{*}/a=b', '*', '*a*']}"),
    operation("{notPaths: ['/{**}/', '/a*b', '/{*}/{**}/b/']}"),
    when("{key: 'request.auth.claims[a][b]', values: [x]}"),
    *(when(f"{{key: 'request.headers[{name}]', values: [x]}}") for name in (":path", ":scheme", ":METHOD", "X-a.b_c")),
    when("{key: 'experimental.envoy.filters.a.b[c]', values: ['[x]', '[y*]']}"),
    jwt('{issuer: a, jwks: \'{"keys": []}\', timeout: 1m5s, fromHeaders: [{name: x, prefix: "y "}]}'),
    f"{PEER}spec: {{selector: {{matchLabels: {{a: b}}}}, portLevelMtls: {{80: {{mode: PERMISSIVE}}}}}}",
    "# nothing but a comment\n---\n---\n",
    "",
]


def refusal(text: str | bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(text, "f.yaml")
    return caught.value


@pytest.mark.parametrize("code", CODES)
def test_each_row_refuses(code: str) -> None:
    for text in REFUSED[code]:
        problems = refusal(text).problems
        assert code in {problem.code for problem in problems}, (text[:200], [str(p) for p in problems])
        for problem in problems:
            assert problem.code in CODES
            assert str(problem).startswith(f"f.yaml:{problem.origin.line}:{problem.origin.column}: {problem.code} ")
            assert min(problem.origin.line, problem.origin.column) > 0
            assert problem.hint, str(problem)


def test_every_code_has_a_hint() -> None:
    assert HINTS.keys() == CODES.keys()
    assert all(HINTS.values())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"a: 1\nb\xc3\xa9: \xff", (2, 5)),
        ("\u00e9: 1\na: 'x\x00'", (2, 6)),
        ("a: '\ud800'", (1, 1)),
        (b" " * (MAX_BYTES + 1), (1, 1)),
    ],
)
def test_what_is_no_text_has_a_place_as_well(text: str | bytes, place: tuple[int, int]) -> None:
    (problem,) = refusal(text).problems
    assert (problem.origin.line, problem.origin.column) == place


def test_the_page_has_every_row() -> None:
    rows = re.findall(r"^\| (P\d{3}|W\d{3}) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == {**CODES, **WARNINGS}


@pytest.mark.parametrize("code", WARNINGS)
def test_each_warning_takes(code: str) -> None:
    assert [warning.code for warning in parse(WARNED[code], "f").warnings] == [code]


@pytest.mark.parametrize("text", TAKEN)
def test_is_taken(text: str) -> None:
    assert isinstance(parse(text, "f"), PolicySet)


def test_a_refusal_names_line_column_pointer_and_hint() -> None:
    text = f"{HEAD}spec:\n  rules:\n  - to:\n    - operation:\n        path: [/a]\n        ports: ['x']\n"
    first, second = refusal(text).problems
    assert str(first) == "f.yaml:8:15: P006 there is no field `path` here (did you mean `paths`?)"
    assert (second.code, second.origin.line, second.origin.column) == ("P115", 9, 17)
    assert second.pointer == "/spec/rules/0/to/0/operation/ports/0"


def test_streams_lists_and_directories() -> None:
    other = HEAD.replace("name: p", "name: q")
    item = "".join(f"  {line}\n" for line in other.splitlines())
    of_kubernetes = f"apiVersion: v1\nkind: List\nitems:\n-{item[1:]}"
    assert [p.name for p in parse(f"{HEAD}---\n{other}", "f").policies] == ["p", "q"]
    assert [p.id for p in parse(of_kubernetes, "f").policies] == ["n/q"]
    assert [p.name for p in parse(f"-{item[1:]}", "f").policies] == ["q"]
    both = parse_all([("a.yaml", HEAD), ("b.yaml", other)])
    assert [p.origin.source for p in both.policies] == ["a.yaml", "b.yaml"]
    with pytest.raises(Refused, match=r"b\.yaml:1:1: P009"):
        parse_all([("a.yaml", HEAD), ("b.yaml", HEAD)])


def test_an_object_is_read_like_its_text() -> None:
    text = source("{principals: ['a*'], notNamespaces: [b]}")
    assert parse_object(yaml.safe_load(text), "request").policies == parse(text, "f").policies
    with pytest.raises(Refused) as caught:
        parse_object({"kind": "AuthorizationPolicy", "apiVersion": "security.istio.io/v1", "spec": []}, "request")
    assert {(p.code, p.pointer) for p in caught.value.problems} == {("P008", ""), ("P005", "/spec")}


def test_key_sets_are_fetched_from_listed_hosts_alone() -> None:
    text = jwt("{jwksUri: 'https://keys.example/jwks'}")
    read = parse(text, "f", jwks_hosts=frozenset({"keys.example"})).request_authentications
    assert read[0].rules[0].jwks_uri == "https://keys.example/jwks"
