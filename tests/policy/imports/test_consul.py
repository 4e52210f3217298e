"""Intentions as rules: what Consul would decide, by an evaluator written from its description, and each loss."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.imports.consul import Options, import_consul
from policy.imports.losses import LOSSES, Imported
from policy.model import Mesh, Request, Target
from policy.parse import parse
from policy.problems import Refused
from policy.snapshot import Snapshot, compile_set

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
SERVICES = ("web", "api", "db", "cache")
MESH = Mesh(trust_domains=("td",))


def target(name: str, namespace: str = "default") -> Target:
    return Target(spiffe_id=f"spiffe://td/ns/{namespace}/sa/{name}", namespace=namespace)


KNOWN = [target(name) for name in SERVICES]


def imported(*entries: dict[str, Any], known: bool = True, default_allow: bool = False) -> Imported:
    options = Options(trust_domain="td", services=KNOWN if known else (), default_allow=default_allow)
    return import_consul([("intentions.json", json.dumps(list(entries)))], options)


def compiled(found: Imported) -> Snapshot:
    return compile_set(parse(found.yaml(), "imported").policies, MESH, KNOWN)


def allowed(known: Snapshot, source: str, destination: str, **asked: Any) -> bool:
    known_request: dict[str, Any] = {"method": "GET", "path": "/"}
    principal = f"td/ns/default/sa/{source}" if "/" not in source else source
    request = Request(principal=principal, **(known_request | asked))
    return known.decide(f"spiffe://td/ns/default/sa/{destination}", request).allowed


def entry(name: str, *sources: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"Kind": "service-intentions", "Name": name, "Sources": list(sources), **more}


def source(name: str, action: str = "allow", **more: Any) -> dict[str, Any]:
    return {"Name": name, "Action": action, **more}


def http(action: str, **of: Any) -> dict[str, Any]:
    return {"Action": action, "HTTP": of}


def test_the_most_exact_intention_holds_alone() -> None:
    found = imported(entry("db", source("*", "allow"), source("web", "deny")), entry("*", source("web", "allow")))
    known = compiled(found)
    assert found.losses[0].code == "C04"
    assert not allowed(known, "web", "db")
    assert allowed(known, "api", "db")
    assert allowed(known, "web", "cache")
    assert not allowed(known, "api", "cache")
    assert not allowed(known, "other.example/ns/default/sa/api", "db"), "everybody is everybody of the own trust domain"


def test_a_wildcard_alone_is_a_policy_for_the_namespace() -> None:
    found = imported(entry("*", source("web")), known=False)
    assert found.losses == []
    assert "burgee" not in found.objects[0]["spec"]
    assert allowed(compiled(found), "web", "api")


def test_beside_named_destinations_the_wildcard_is_for_known_services_alone() -> None:
    found = imported(entry("*", source("web")), entry("db", source("api")), known=False)
    assert [loss.code for loss in found.losses] == ["C04"]
    known = compiled(found)
    assert allowed(known, "web", "db")
    assert not allowed(known, "web", "cache"), "which nobody told of: stricter, never wider"


def test_permissions_are_gone_through_in_order() -> None:
    permissions = [http("deny", PathPrefix="/admin", Methods=["GET", "POST"]), http("allow", PathPrefix="/")]
    known = compiled(imported(entry("api", {"Name": "web", "Permissions": permissions})))
    assert allowed(known, "web", "api", path="/a")
    assert not allowed(known, "web", "api", path="/admin/x")
    assert allowed(known, "web", "api", path="/admin/x", method="PUT")
    assert not allowed(known, "web", "api", path=None, method=None, http=False)


def test_the_default_of_consul_may_be_to_allow() -> None:
    found = imported(entry("db", source("web", "deny")), default_allow=True)
    known = compiled(found)
    assert not allowed(known, "web", "db")
    assert allowed(known, "api", "db")
    assert allowed(known, "web", "cache")


@pytest.mark.parametrize(
    ("header", "yes", "no"),
    [
        ({"Present": True}, ["", "x"], [None]),
        ({"Exact": "a"}, ["a"], ["A", "ab", None]),
        ({"Exact": "*a*"}, ["*a*"], ["a", "xax", None]),
        ({"Prefix": "a"}, ["a", "ab"], ["ba", None]),
        ({"Suffix": "a"}, ["a", "ba"], ["ab", None]),
        ({"Contains": "a"}, ["a", "bab"], ["b", None]),
        ({"Regex": "a+|b"}, ["aa", "b"], ["ab", "xb", None]),
        ({"Regex": ".*"}, ["", "x"], [None]),
        ({"Exact": "a.", "IgnoreCase": True}, ["A.", "a."], ["ab", None]),
        ({"Contains": "a", "IgnoreCase": True}, ["xAx"], ["x", None]),
        ({"Exact": "a", "Invert": True}, ["b", None], ["a"]),
        ({"Contains": "a", "Invert": True}, ["b", None], ["cat"]),
        ({"Present": True, "Invert": True}, [None], ["", "x"]),
    ],
)
def test_headers(header: dict[str, Any], yes: list[str | None], no: list[str | None]) -> None:
    found = imported(entry("api", {"Name": "web", "Permissions": [http("allow", Header=[{"Name": "X-A", **header}])]}))
    known = compiled(found)
    assert found.losses == []
    for values, wanted in ((yes, True), (no, False)):
        for value in values:
            headers = {} if value is None else {"x-a": value}
            assert allowed(known, "web", "api", headers=headers) is wanted, value


def test_paths_that_a_policy_would_read_otherwise_are_compared_by_a_condition() -> None:
    for path in ("/a*", "/{*}"):
        known = compiled(imported(entry("api", {"Name": "web", "Permissions": [http("allow", PathExact=path)]})))
        assert allowed(known, "web", "api", path=path)
        assert not allowed(known, "web", "api", path="/abc")
    known = compiled(imported(entry("api", {"Name": "web", "Permissions": [http("allow", PathRegex="/v[0-9]+/.*")]})))
    assert allowed(known, "web", "api", path="/v1/x")
    assert not allowed(known, "web", "api", path="/x/v1/x")


LOSING = {
    "C01": entry("api", source("web", Peer="other"), source("db", SamenessGroup="g"), source("cache", Partition="p")),
    "C02": entry("api", {"Name": "web", "Permissions": [{**http("allow", PathPrefix="/"), "JWT": {"Providers": []}}]}),
    "C03": entry("api", {"Name": "web", "Permissions": [http("allow", PathRegex="(a"), http("allow", PathExact="/b")]}),
    "C04": entry("*", source("web")),
}


@pytest.mark.parametrize("code", [code for code in LOSSES if code.startswith("C")])
def test_each_loss_is_told_with_its_line_and_allows_nothing(code: str) -> None:
    more = [entry("db", source("nobody"))] if code == "C04" else []
    found = imported(LOSING[code], *more, known=False)
    assert {loss.code for loss in found.losses} == {code}
    assert all(str(loss).startswith("intentions.json:1: ") for loss in found.losses)
    assert not allowed(compiled(found), "web", "api")


def test_an_entry_that_asks_for_tokens_allows_nobody() -> None:
    found = imported(entry("api", source("web"), JWT={"Providers": [{"Name": "okta"}]}))
    assert [loss.code for loss in found.losses] == ["C02"]
    assert not allowed(compiled(found), "web", "api")


def test_objects_of_kubernetes_are_read() -> None:
    text = """
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceIntentions
metadata: {name: api}
spec:
  destination: {name: api}
  sources:
  - name: web
    permissions:
    - action: allow
      http: {pathPrefix: /v1, methods: [GET], header: [{name: x-a, exact: b}]}
  - {name: "*", action: deny}
"""
    found = import_consul([("i.yaml", text)], Options(trust_domain="td"))
    known = compiled(found)
    assert allowed(known, "web", "api", path="/v1/x", headers={"x-a": "b"})
    assert not allowed(known, "web", "api", path="/v1/x")


def test_ids_can_be_consul_s_own() -> None:
    principal = "{trust_domain}/ns/{namespace}/dc/dc1/svc/{service}"
    found = import_consul(
        [("i", json.dumps(entry("api", source("web"))))], Options(trust_domain="u.consul", principal=principal)
    )
    assert found.objects[0]["spec"]["burgee"] == {"spiffeIds": ["spiffe://u.consul/ns/default/dc/dc1/svc/api"]}
    assert found.objects[0]["spec"]["rules"][0]["from"] == [
        {"source": {"principals": ["u.consul/ns/default/dc/dc1/svc/web"]}}
    ]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"Kind": "service-router", "Name": "x"}, "P007"),
        (entry("", source("web")), "P113"),
        (entry("a/b", source("web")), "P008"),
        (entry("api", source("web", Namespace="*")), "P008"),
        (entry("api", source("web", "maybe")), "P101"),
        (entry("api", {"Name": "web"}), "P101"),
        (entry("api", source("web", Color="red")), "P006"),
        (entry("api", {"Name": "web", "Permissions": [http("allow", PathExact="/a", PathPrefix="/")]}), "P105"),
        (entry("api", {"Name": "web", "Permissions": [http("allow", Header=[{"Name": "a"}])]}), "P105"),
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as refused:
        imported(wrong)
    assert refused.value.problems[0].code == code


def test_too_many_alternatives_are_refused() -> None:
    deny = [
        http("deny", PathPrefix=f"/{n}", Methods=["GET"], Header=[{"Name": f"x-{n}", "Present": True}])
        for n in range(9)
    ]
    with pytest.raises(Refused, match="more than 512 rules"):
        imported(entry("api", {"Name": "web", "Permissions": [*deny, http("allow", PathPrefix="/")]}))


# A reading of Consul's description, as plain as can be

MATCHES: list[dict[str, Any]] = [
    {"Present": True},
    {"Exact": "a"},
    {"Prefix": "a"},
    {"Contains": "b"},
    {"Regex": "a.?"},
]
HEADERS = st.builds(
    lambda match, invert: {"Name": "x-a", "Invert": invert, **match}, st.sampled_from(MATCHES), st.booleans()
)
HTTP = st.fixed_dictionaries(
    {},
    optional={
        "PathPrefix": st.sampled_from(["/", "/a", "/a/b"]),
        "Methods": st.lists(st.sampled_from(["GET", "POST"]), min_size=1, max_size=2, unique=True),
        "Header": st.lists(HEADERS, max_size=1),
    },
)
PERMISSIONS = st.lists(
    st.builds(lambda a, h: {"Action": a, "HTTP": h}, st.sampled_from(["allow", "deny"]), HTTP), min_size=1, max_size=3
)
NAMES = st.sampled_from([*SERVICES[:3], "*"])
SOURCES = st.lists(
    st.one_of(
        st.builds(source, NAMES, st.sampled_from(["allow", "deny"])),
        st.builds(lambda n, p: {"Name": n, "Permissions": p}, NAMES, PERMISSIONS),
    ),
    max_size=3,
    unique_by=lambda s: s["Name"],
)
ENTRIES = st.lists(st.builds(lambda n, s: entry(n, *s), NAMES, SOURCES), max_size=3, unique_by=lambda e: e["Name"])


def header_holds(header: dict[str, Any], value: str | None) -> bool:
    text = value or ""
    found = value is not None and (
        header.get("Present", False)
        or text == header.get("Exact")
        or ("Prefix" in header and text.startswith(header["Prefix"]))
        or ("Contains" in header and header["Contains"] in text)
        or ("Regex" in header and re.fullmatch(header["Regex"], text) is not None)
    )
    return bool(found) != bool(header.get("Invert", False))


def consul_decides(entries: list[dict[str, Any]], who: str, whom: str, asked: Request, default: bool) -> bool:
    candidates = [
        (e["Name"] != "*", s["Name"] != "*", s)
        for e in entries
        for s in e["Sources"]
        if e["Name"] in ("*", whom) and s["Name"] in ("*", who)
    ]
    if not candidates:
        return default
    intention = max(candidates, key=lambda c: c[:2])[2]
    for permission in intention.get("Permissions", []):
        of = permission["HTTP"]
        if (
            (asked.path or "").startswith(of.get("PathPrefix", ""))
            and asked.method in of.get("Methods", [asked.method])
            and all(header_holds(h, asked.headers.get("x-a")) for h in of.get("Header", []))
        ):
            return bool(permission["Action"] == "allow")
    return default if "Permissions" in intention else bool(intention["Action"] == "allow")


@settings(max_examples=500 if LONG else 60, deadline=None)
@given(
    entries=ENTRIES,
    who=st.sampled_from(SERVICES),
    whom=st.sampled_from(SERVICES),
    method=st.sampled_from(["GET", "POST"]),
    path=st.sampled_from(["/", "/a", "/a/b", "/b"]),
    value=st.sampled_from([None, "", "a", "ab", "b"]),
    default=st.booleans(),
)
def test_it_decides_as_consul_does(
    entries: list[dict[str, Any]], who: str, whom: str, method: str, path: str, value: str | None, default: bool
) -> None:
    found = imported(*entries, default_allow=default)
    asked = Request(method=method, path=path, headers={} if value is None else {"x-a": value})
    wanted = consul_decides(entries, who, whom, asked, default and bool(entries))
    assert {loss.code for loss in found.losses} <= {"C04"}
    assert allowed(compiled(found), who, whom, method=method, path=path, headers=asked.headers) is wanted
