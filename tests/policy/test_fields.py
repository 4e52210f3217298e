"""Every field of a source and an operation, its `not…` twin, and every key of a condition: a request that it matches,
and one that it does not."""

from __future__ import annotations

from typing import Any

import pytest

from policy.clauses import KEYS, OPERATION, SOURCE
from policy.model import Request
from tests.policy.test_semantics import decide, operation, policy, source, when

WEB, DB = "td1/ns/shop/sa/web", "other/ns/bank/sa/db"
LISTED = {"envoy.filters.a": {"k": ["v"]}}

# Field or key → a value, what a request has that it matches, and what one has that it does not.
FIELDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "principals": (WEB, {"principal": WEB}, {"principal": DB}),
    "requestPrincipals": ("i/s", {"claims": {"iss": "i", "sub": "s"}}, {"claims": {"iss": "i", "sub": "t"}}),
    "namespaces": ("shop", {"principal": WEB}, {"principal": DB}),
    "serviceAccounts": ("shop/web", {"principal": WEB}, {"principal": DB}),
    "trustDomains": ("td1", {"principal": WEB}, {"principal": DB}),
    "ipBlocks": ("10.0.0.0/8", {"source_ip": "10.0.0.1"}, {"source_ip": "1.1.1.1", "remote_ip": "10.0.0.1"}),
    "remoteIpBlocks": ("10.0.0.0/8", {"remote_ip": "10.0.0.1"}, {"remote_ip": "1.1.1.1", "source_ip": "10.0.0.1"}),
    "hosts": ("a.example", {"host": "A.example"}, {"host": "b.example"}),
    "ports": ("80", {"destination_port": 80}, {"destination_port": 8080}),
    "methods": ("GET", {"method": "GET"}, {"method": "PUT"}),
    "paths": ("/a", {"path": "/a"}, {"path": "/b"}),
}
CONDITIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "source.ip": FIELDS["ipBlocks"],
    "remote.ip": FIELDS["remoteIpBlocks"],
    "source.namespace": FIELDS["namespaces"],
    "source.serviceAccount": FIELDS["serviceAccounts"],
    "source.principal": FIELDS["principals"],
    "source.trustDomain": FIELDS["trustDomains"],
    "request.auth.principal": FIELDS["requestPrincipals"],
    "request.auth.audiences": ("us", {"claims": {"aud": ["them", "us"]}}, {"claims": {"aud": ["them"]}}),
    "request.auth.presenter": ("app", {"claims": {"azp": "app"}}, {"claims": {"azp": "other"}}),
    "destination.ip": ("10.0.0.0/8", {"destination_ip": "10.0.0.1"}, {"destination_ip": "1.1.1.1"}),
    "destination.port": FIELDS["ports"],
    "connection.sni": ("a.example", {"sni": "a.example"}, {"sni": "b.example"}),
    "request.headers[X-A]": ("v", {"headers": {"x-a": "v"}}, {"headers": {"x-a": "w"}}),
    "request.auth.claims[g]": ("v", {"claims": {"g": ["w", "v"]}}, {"claims": {"g": ["w"]}}),
    "request.auth.claims[a][b]": ("v", {"claims": {"a": {"b": "v"}}}, {"claims": {"a": {"b": "w"}, "b": "v"}}),
    "experimental.envoy.filters.a[k]": ("[v]", {"metadata": LISTED}, {"metadata": {"envoy.filters.b": {"k": ["v"]}}}),
}


def test_no_field_and_no_key_is_left_out() -> None:
    assert FIELDS.keys() == SOURCE.keys() | OPERATION.keys()
    kept = {key.partition("[")[0] for key in CONDITIONS}
    others = {"request.headers", "request.auth.claims", "experimental.envoy.filters.a"}
    assert kept == KEYS.keys() | others


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_and_its_twin(name: str) -> None:
    value, has, has_not = FIELDS[name]
    written = source if name in SOURCE else operation
    twin = f"not{name[0].upper()}{name[1:]}"
    for field, matches in ((name, True), (twin, False)):
        rules = policy(written(f"{{{field}: ['{value}']}}"))
        assert decide(rules, Request(**has)).allowed is matches
        assert decide(rules, Request(**has_not)).allowed is not matches
        assert decide(rules, Request()).allowed is not matches, "what is absent equals nothing"


@pytest.mark.parametrize("key", CONDITIONS)
def test_a_condition_with_values_and_without(key: str) -> None:
    value, has, has_not = CONDITIONS[key]
    for field, matches in (("values", True), ("notValues", False)):
        rules = policy(when(key, f"['{value}']", field))
        assert decide(rules, Request(**has)).allowed is matches
        assert decide(rules, Request(**has_not)).allowed is not matches
        assert decide(rules, Request()).allowed is not matches, "what is absent equals nothing"
