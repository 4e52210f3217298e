"""Linkerd's objects as rules: what Linkerd would decide, by an evaluator from its description, and each loss."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.imports.linkerd import Options, import_linkerd
from policy.imports.losses import LOSSES, Imported
from policy.model import Mesh, Request, Target
from policy.parse import parse
from policy.problems import Refused
from policy.snapshot import compile_set

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
API = "spiffe://td/ns/shop/sa/api"
TARGET = Target(spiffe_id=API, namespace="shop", labels=(("app", "api"),))


def thing(kind: str, name: str, spec: dict[str, Any], group: str = "policy.linkerd.io/v1") -> dict[str, Any]:
    return {"apiVersion": group, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def server(port: Any = 8080, **more: Any) -> dict[str, Any]:
    return thing("Server", "api", {"podSelector": {"matchLabels": {"app": "api"}}, "port": port, **more})


def route(name: str, *matches: dict[str, Any], **more: Any) -> dict[str, Any]:
    parents = [{"group": "policy.linkerd.io", "kind": "Server", "name": "api"}]
    rules = [{"matches": list(matches)}] if matches else [{}]
    return thing("HTTPRoute", name, {"parentRefs": parents, "rules": rules, **more})


def under(path: str, **more: Any) -> dict[str, Any]:
    return {"path": {"type": "PathPrefix", "value": path}, **more}


def mesh_tls(name: str, *identities: str, refs: Any = None) -> dict[str, Any]:
    spec: dict[str, Any] = {"identities": list(identities)} if identities else {}
    return thing("MeshTLSAuthentication", name, spec | ({"identityRefs": refs} if refs else {}))


def network(name: str, *networks: dict[str, Any]) -> dict[str, Any]:
    return thing("NetworkAuthentication", name, {"networks": list(networks)})


def ref(name: str, kind: str = "MeshTLSAuthentication") -> dict[str, Any]:
    return {"group": "policy.linkerd.io", "kind": kind, "name": name}


def authorization(kind: str, name: str, *required: dict[str, Any], called: str = "p") -> dict[str, Any]:
    return thing(
        "AuthorizationPolicy",
        called,
        {"targetRef": {"kind": kind, "name": name}, "requiredAuthenticationRefs": list(required)},
    )


WEB = mesh_tls("web", "web.shop.serviceaccount.identity.linkerd.cluster.local")
BATCH = mesh_tls("batch", "batch.ops.serviceaccount.identity.linkerd.cluster.local")
ANYBODY = network("all", {"cidr": "0.0.0.0/0"})


def imported(*objects: dict[str, Any], default: str = "deny") -> Imported:
    return import_linkerd([("l.json", json.dumps(list(objects)))], Options(trust_domain="td", default_policy=default))


def allowed(found: Imported, who: str | None = "shop/web", port: int = 8080, **asked: Any) -> bool:
    known = compile_set(parse(found.yaml(), "imported").policies, Mesh(trust_domains=("td",)), [TARGET])
    principal = None if who is None else f"td/ns/{who.replace('/', '/sa/')}"
    given_request: dict[str, Any] = {"method": "GET", "path": "/", "source_ip": "10.0.0.1", "host": "api"}
    request = Request(principal=principal, destination_port=port, **(given_request | asked))
    return known.decide(API, request).allowed


def test_a_policy_for_a_server_is_for_its_pods_and_port() -> None:
    found = imported(server(), WEB, authorization("Server", "api", ref("web")))
    assert found.losses == []
    assert found.objects[0]["spec"]["selector"] == {"matchLabels": {"app": "api"}}
    assert allowed(found)
    assert not allowed(found, "ops/batch")
    assert not allowed(found, None)
    assert not allowed(found, port=9090)


def test_a_policy_for_a_namespace_is_for_each_of_its_servers() -> None:
    assert allowed(imported(server(), WEB, authorization("Namespace", "shop", ref("web"))))


@pytest.mark.parametrize(
    ("authentication", "yes", "no"),
    [
        (mesh_tls("a", "*"), ["shop/web", "x/y"], [None]),
        (mesh_tls("a", "*.ops.serviceaccount.identity.linkerd.cluster.local"), ["ops/batch"], ["shop/web", None]),
        (mesh_tls("a", "web.shop.serviceaccount.identity.linkerd.other"), [], ["shop/web"]),
        (mesh_tls("a", "spiffe://td/ns/shop/sa/web"), ["shop/web"], ["shop/x"]),
        (mesh_tls("a", refs=[{"kind": "ServiceAccount", "name": "web"}]), ["shop/web"], ["ops/web"]),
        (
            mesh_tls("a", refs=[{"kind": "ServiceAccount", "name": "web", "namespace": "ops"}]),
            ["ops/web"],
            ["shop/web"],
        ),
        (mesh_tls("a", refs=[{"kind": "Namespace", "name": "ops"}]), ["ops/x"], ["shop/web"]),
    ],
)
def test_identities(authentication: dict[str, Any], yes: list[str | None], no: list[str | None]) -> None:
    found = imported(server(), authentication, authorization("Server", "api", ref("a")))
    assert found.losses == []
    assert [allowed(found, who) for who in yes] == [True] * len(yes)
    assert [allowed(found, who) for who in no] == [False] * len(no)


def test_networks_with_exceptions_and_both_together() -> None:
    inner = network("n", {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}, {"cidr": "192.168.0.1"})
    alone = imported(server(), inner, authorization("Server", "api", ref("n", "NetworkAuthentication")))
    assert allowed(alone, None)
    assert allowed(alone, None, source_ip="192.168.0.1")
    assert not allowed(alone, source_ip="10.1.2.3")
    both = imported(server(), inner, WEB, authorization("Server", "api", ref("web"), ref("n", "NetworkAuthentication")))
    assert allowed(both)
    assert not allowed(both, None)
    assert not allowed(both, source_ip="10.1.2.3")


def test_a_service_account_can_be_required_itself() -> None:
    account = {"kind": "ServiceAccount", "name": "web"}
    assert allowed(imported(server(), authorization("Server", "api", account)))


@pytest.mark.parametrize(
    ("access", "who"), [("all-unauthenticated", [None, "x/y"]), ("all-authenticated", ["x/y"]), ("deny", [])]
)
def test_what_a_server_lets_in_by_itself(access: str, who: list[str | None]) -> None:
    found = imported(server(accessPolicy=access))
    assert [allowed(found, one) for one in (None, "x/y")] == [one in who for one in (None, "x/y")]


def test_a_route_takes_what_is_most_specific_and_the_rest_is_for_nobody() -> None:
    routes = [route("all", under("/v1")), route("admin", under("/v1/admin"))]
    first = authorization("HTTPRoute", "all", ref("web"), called="a")
    found = imported(
        server(), WEB, BATCH, *routes, first, authorization("HTTPRoute", "admin", ref("batch"), called="b")
    )
    assert found.losses == []
    assert allowed(found, path="/v1/x")
    assert not allowed(found, path="/v1/admin/x"), "the other route's"
    assert allowed(found, "ops/batch", path="/v1/admin")
    assert not allowed(found, "ops/batch", path="/v1")
    assert not allowed(found, path="/v2"), "no route's"
    assert allowed(found, path="/v1/administration"), "whole segments"


def test_who_is_let_in_to_a_server_is_let_in_to_its_routes_alone() -> None:
    found = imported(
        server(), WEB, route("r", under("/v1"), hostnames=["api"]), authorization("Server", "api", ref("web"))
    )
    assert allowed(found, path="/v1", host="api:8080")
    assert not allowed(found, path="/v2")
    assert not allowed(found, path="/v1", host="other")


LOSING: dict[str, list[dict[str, Any]]] = {
    "L01": [server("http"), authorization("Server", "api", ref("web"))],
    "L02": [thing("Server", "api", {"podSelector": {"matchExpressions": []}, "port": 8080})],
    "L03": [server(accessPolicy="cluster-authenticated")],
    "L04": [
        server(),
        authorization("Server", "api"),
        authorization("Server", "api", ref("web"), ref("web"), called="q"),
    ],
    "L05": [server(), mesh_tls("x", "*.example"), authorization("Server", "api", ref("x"))],
    "L06": [
        server(),
        route("r", under("/", queryParams=[{"name": "a", "value": "b"}])),
        authorization("HTTPRoute", "r", ref("web")),
    ],
    "L07": [
        server(),
        route("r", {"path": {"type": "RegularExpression", "value": "(a"}}),
        authorization("HTTPRoute", "r", ref("web")),
    ],
    "L08": [
        server(),
        authorization("Server", "other", ref("web")),
        authorization("Server", "api", ref("nobody"), called="q"),
    ],
    "L09": [server(), thing("ServerAuthorization", "x", {})],
    "L10": [server()],
    "L11": [server(), route("a", under("/v")), route("b", under("/v")), authorization("HTTPRoute", "a", ref("web"))],
}


@pytest.mark.parametrize("code", [code for code in LOSSES if code.startswith("L")])
def test_each_loss_is_told_with_its_line_and_allows_nothing(code: str) -> None:
    found = imported(WEB, *LOSING[code], default="all-unauthenticated" if code == "L10" else "deny")
    assert {loss.code for loss in found.losses} == {code}
    assert all(str(loss).startswith("l.json:1: ") for loss in found.losses)
    for path in ("/", "/v", "/a"):
        assert not found.objects or not allowed(found, path=path)


def test_streams_and_lists_of_yaml_are_read() -> None:
    text = """
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: api, namespace: shop}
spec: {podSelector: {}, port: 8080, proxyProtocol: HTTP/2}
---
apiVersion: v1
kind: List
items:
- apiVersion: policy.linkerd.io/v1alpha1
  kind: AuthorizationPolicy
  metadata: {name: a, namespace: shop}
  spec:
    targetRef: {group: policy.linkerd.io, kind: Server, name: api}
    requiredAuthenticationRefs: [{kind: ServiceAccount, name: web}]
"""
    found = import_linkerd([("l.yaml", text)], Options(trust_domain="td", default_policy="deny"))
    assert "selector" not in found.objects[0]["spec"]
    assert allowed(found)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (server(prot=1), "P006"),
        (network("n", {"cidr": "nowhere"}), "P114"),
        (route("r", {"path": {"type": "Glob", "value": "/"}}), "P105"),
        (route("r", {"headers": [{"name": "a"}]}), "P105"),
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as refused:
        imported(wrong)
    assert refused.value.problems[0].code == code


MATCHES = st.builds(
    lambda kind, value, method, header: {
        "path": {"type": kind, "value": value},
        **({"method": method} if method else {}),
        **({"headers": [{"name": "x-a", "value": "1"}]} if header else {}),
    },
    st.sampled_from(["PathPrefix", "PathPrefix", "Exact"]),
    st.sampled_from(["/", "/a", "/a/b", "/c"]),
    st.sampled_from(["", "GET", "POST"]),
    st.booleans(),
)


def takes(match: dict[str, Any], method: str, path: str, headers: dict[str, str]) -> bool:
    value = match["path"]["value"]
    start = value.rstrip("/")
    fits = path == value if match["path"]["type"] == "Exact" else path == start or path.startswith(f"{start}/")
    return fits and match.get("method", method) == method and ("headers" not in match or headers.get("x-a") == "1")


def rank(match: dict[str, Any]) -> tuple[Any, ...]:
    return (match["path"]["type"] == "Exact", len(match["path"]["value"]), "method" in match, "headers" in match)


@settings(max_examples=800 if LONG else 80, deadline=None)
@given(
    of_web=st.lists(MATCHES, min_size=1, max_size=2),
    of_batch=st.lists(MATCHES, max_size=2),
    on_server=st.booleans(),
    method=st.sampled_from(["GET", "POST"]),
    path=st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/c", "/ab"]),
    header=st.booleans(),
    who=st.sampled_from(["shop/web", "ops/batch", "x/y"]),
)
def test_it_decides_as_linkerd_does(
    of_web: Any, of_batch: Any, on_server: bool, method: str, path: str, header: bool, who: str
) -> None:
    objects = [server(), WEB, BATCH, mesh_tls("xy", "spiffe://td/ns/x/sa/y"), route("w", *of_web)]
    objects.append(authorization("HTTPRoute", "w", ref("web"), called="a"))
    if of_batch:
        objects += [route("b", *of_batch), authorization("HTTPRoute", "b", ref("batch"), called="b")]
    if on_server:
        objects.append(authorization("Server", "api", ref("xy"), called="c"))
    found = imported(*objects)
    headers = {"x-a": "1"} if header else {}
    fitting = [
        (rank(m), who_may)
        for some, who_may in ((of_web, "shop/web"), (of_batch, "ops/batch"))
        for m in some
        if takes(m, method, path, headers)
    ]
    best = max((r for r, _ in fitting), default=None)
    owners = {who_may for r, who_may in fitting if r == best}
    wanted = bool(fitting) and ((who == "x/y" and on_server) or owners == {who})
    got = allowed(found, who, method=method, path=path, headers=headers)
    if len(owners) > 1 and who != "x/y":
        assert not got, "of two that match the same neither is let in"
    else:
        assert got is wanted
