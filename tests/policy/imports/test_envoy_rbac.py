"""Envoy's RBAC as our policies: a real Envoy and the import decide the same, or the import is stricter and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2 as _known_to_protobuf
from google.protobuf.json_format import ParseDict

from policy.imports.envoy_rbac import Options, import_envoy_rbac
from policy.imports.losses import LOSSES, Imported
from policy.model import Mesh, Request, Target
from policy.parse import parse
from policy.paths import without_query
from policy.problems import Refused
from policy.snapshot import Snapshot, compile_set
from tests.support.policy_envoy import Call, PolicyEnvoy

pytestmark = [pytest.mark.xdist_group("policy-envoy")]

assert _known_to_protobuf
ID = "spiffe://td/ns/a/sa/t"
ANY: list[dict[str, Any]] = [{"any": True}]


def rbac(permissions: Any = ANY, principals: Any = ANY, *, action: str = "ALLOW", **more: Any) -> dict[str, Any]:
    return {
        "rules": {"action": action, "policies": {"p": {"permissions": permissions, "principals": principals, **more}}}
    }


def header(name: str = "x-a", **of: Any) -> dict[str, Any]:
    return {"header": {"name": name, **of}}


def named(**matcher: Any) -> dict[str, Any]:
    return {"authenticated": {"principal_name": matcher}}


def template(text: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
    return {"uri_template": {"name": "t", "typed_config": {"@type": kind, "path_template": text}}}


def cidr(address: str, length: int) -> dict[str, Any]:
    return {"address_prefix": address, "prefix_len": length}


PERMISSIONS: list[Any] = [
    {"any": True},
    {"url_path": {"path": {"exact": "/a"}}},
    {"url_path": {"path": {"exact": "/a*"}}},
    {"url_path": {"path": {"prefix": "/a"}}},
    {"url_path": {"path": {"suffix": "b"}}},
    {"url_path": {"path": {"contains": "a/"}}},
    {"url_path": {"path": {"exact": "/A", "ignore_case": True}}},
    {"url_path": {"path": {"safe_regex": {"regex": "/a/[a-z]|/b"}}}},
    {"urlPath": {"path": {"safeRegex": {"googleRe2": {}, "regex": ".*b"}}}},
    header(":method", string_match={"exact": "GET"}),
    header(":method", exact_match="GET", invert_match=True),
    header(":authority", string_match={"exact": "svc"}),
    header(string_match={"exact": "1"}),
    header(string_match={"prefix": "1"}),
    header(string_match={"suffix": "2"}),
    header(string_match={"contains": "2"}),
    header(string_match={"safe_regex": {"regex": ".*"}}),
    header(string_match={"exact": "1"}, invert_match=True),
    header(string_match={"contains": "2"}, invert_match=True),
    header(present_match=True),
    header(present_match=False),
    header(present_match=True, invert_match=True),
    header(),
    {"not_rule": header(string_match={"exact": "1"})},
    {"not_rule": {"and_rules": {"rules": [{"url_path": {"path": {"prefix": "/a"}}}, header(present_match=True)]}}},
    {"and_rules": {"rules": [{"url_path": {"path": {"prefix": "/a"}}}, {"url_path": {"path": {"suffix": "/b"}}}]}},
    {"or_rules": {"rules": [{"url_path": {"path": {"exact": "/b"}}}, header(string_match={"exact": "12"})]}},
    {"destination_ip": cidr("127.0.0.0", 8)},
    {"not_rule": {"destination_ip": cidr("127.0.0.1", 32)}},
    {"requested_server_name": {"exact": "svc"}},
    template("/*/b"),
    template("/a/**"),
    template("/a"),
]
PRINCIPALS: list[Any] = [
    {"any": True},
    named(exact="spiffe://td/ns/a/sa/x"),
    named(prefix="spiffe://td/ns/a/"),
    named(prefix="spiffe://"),
    named(suffix="/sa/x"),
    named(contains="ns/b"),
    named(safe_regex={"regex": "spiffe://td/ns/[ab]/sa/x"}),
    {"not_id": named(exact="spiffe://td/ns/a/sa/x")},
    {"and_ids": {"ids": [named(prefix="spiffe://td/"), {"not_id": named(suffix="/sa/x")}]}},
    {"or_ids": {"ids": [named(exact="spiffe://td/ns/b/sa/x"), {"direct_remote_ip": cidr("127.0.0.2", 32)}]}},
    {"direct_remote_ip": cidr("127.0.0.0", 31)},
    {"header": {"name": "x-a", "string_match": {"exact": "1"}}},
    {"url_path": {"path": {"exact": "/a"}}},
]
CASES = [rbac([permission], action=action) for permission in PERMISSIONS for action in ("ALLOW", "DENY")]
CASES += [rbac(ANY, [principal], action=action) for principal in PRINCIPALS for action in ("ALLOW", "DENY")]
CASES += [rbac(PERMISSIONS[1:3], PRINCIPALS[2:4]), {"rules": {"policies": {}}}]
LOSING = {
    "E01": rbac([{"metadata": {"filter": "f", "path": [{"key": "k"}], "value": {"string_match": {"exact": "v"}}}}]),
    "E02": rbac(ANY, [named(exact="example.org")]),
    "E03": rbac([header(":path", string_match={"exact": "/a"})]),
    "E04": rbac(action="LOG"),
    "E05": rbac([header(range_match={"start": 1, "end": 5})]),
    "E06": rbac(condition={"const_expr": {"bool_value": True}}),
}
CALLS = [
    Call(case="", uris=uris, method=method, path=path, headers=headers, source_ip=source_ip, sni=sni)
    for uris, source_ip, sni in (
        (("spiffe://td/ns/a/sa/x",), "127.0.0.1", "svc"),
        (("spiffe://td/ns/a/sa/y",), "127.0.0.2", None),
        (("spiffe://td/ns/b/sa/x",), "127.0.0.3", None),
        (None, "127.0.0.1", None),
    )
    for method, path, value in (
        ("GET", "/a", None),
        ("POST", "/a?x=/b", "1"),
        ("GET", "/a/b", "12"),
        ("GET", "/b", ""),
        ("PUT", "/A", "2"),
        ("GET", "/a*", "1"),
    )
    for headers in ({} if value is None else {"x-a": value},)
]


def imported(config: dict[str, Any]) -> Imported:
    return import_envoy_rbac([("rbac.json", json.dumps(config))], Options(namespace="a", spiffe_ids=(ID,)))


def compiled(found: Imported, config: dict[str, Any]) -> Snapshot:
    """A filter that denies lets through what it does not match, as a namespace does that is open."""
    is_deny = config.get("rules", {}).get("action") in ("DENY", "LOG")
    mesh = Mesh(trust_domains=("td",), open_namespaces=frozenset({"a"} if is_deny else ()))
    return compile_set(parse(found.yaml(), "imported").policies, mesh, [Target(spiffe_id=ID, namespace="a")])


def decides(known: Snapshot, call: Call) -> bool:
    request = Request(
        principal=call.uris[0].removeprefix("spiffe://") if call.uris else None,
        method=call.method,
        path=without_query(call.path),
        host=call.host,
        headers=dict(call.headers),
        source_ip=call.source_ip,
        remote_ip=call.source_ip,
        destination_ip="127.0.0.1",
        sni=call.sni,
    )
    return known.decide(ID, request).allowed


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyEnvoy]:
    found = PolicyEnvoy(tmp_path_factory.mktemp("rbac"))
    found.start()
    yield found
    found.stop()


def answers(envoy: PolicyEnvoy, configs: list[dict[str, Any]]) -> dict[tuple[int, int], bool]:
    envoy.load({str(number): ParseDict(config, RBAC()) for number, config in enumerate(configs)})
    pairs = [(number, at) for number in range(len(configs)) for at in range(len(CALLS))]
    calls = [
        Call(
            case=str(number),
            **{f: getattr(CALLS[at], f) for f in ("uris", "method", "path", "headers", "source_ip", "sni")},
        )
        for number, at in pairs
    ]
    return {pair: answer.allowed for pair, answer in zip(pairs, envoy.ask(calls), strict=True)}


@pytest.mark.real("envoy")
def test_a_real_envoy_decides_the_same(envoy: PolicyEnvoy) -> None:
    wrong = []
    made = [imported(config) for config in CASES]
    assert [found.losses for found in made] == [[]] * len(CASES)
    known = [compiled(found, config) for found, config in zip(made, CASES, strict=True)]
    for (number, at), allowed in answers(envoy, CASES).items():
        if decides(known[number], CALLS[at]) != allowed:
            wrong.append((CASES[number], CALLS[at], allowed))
    assert wrong == []


@pytest.mark.real("envoy")
def test_with_losses_nothing_is_allowed_that_envoy_refuses(envoy: PolicyEnvoy) -> None:
    configs = [config for code, config in LOSING.items() if code != "E06"]
    configs.append(rbac(ANY, [{"authenticated": {}}]))
    configs += [
        {"rules": {**config["rules"], "action": "DENY"}} for config in configs if config["rules"]["action"] == "ALLOW"
    ]
    for (number, at), allowed in answers(envoy, configs).items():
        known = compiled(imported(configs[number]), configs[number])
        assert allowed or not decides(known, CALLS[at])


@pytest.mark.parametrize("code", [code for code in LOSSES if code.startswith("E")])
def test_each_loss_is_told(code: str) -> None:
    found = imported(LOSING[code])
    assert [loss.code for loss in found.losses] == [code]
    assert str(found.losses[0]).startswith("rbac.json:1: ")
    known = compiled(found, LOSING[code])
    assert code == "E04" or not any(decides(known, call) for call in CALLS)


def test_ports_and_their_ranges() -> None:
    for permission in ({"destination_port": 80}, {"destination_port_range": {"start": 80, "end": 81}}):
        assert imported(rbac([permission])).objects[0]["spec"]["rules"] == [{"to": [{"operation": {"ports": ["80"]}}]}]
    wide = imported(rbac([{"destination_port_range": {"start": 1000, "end": 2000}}])).objects[0]["spec"]["rules"]
    assert wide == [{"burgee": {"condition": "destination.port >= 1000 && destination.port < 2000"}}]


def test_forms_of_the_configuration() -> None:
    shadow = {"shadow_rules": rbac()["rules"]}
    assert imported(shadow).objects[0]["metadata"]["annotations"] == {"istio.io/dry-run": "true"}
    typed = {"name": "envoy.filters.http.rbac", "typed_config": {"@type": "x", **rbac()}}
    assert imported(typed).objects == imported(rbac()).objects == imported(rbac()["rules"]).objects
    both = imported({"rules": rbac()["rules"], "shadow_rules": rbac()["rules"]})
    assert [o["metadata"]["name"] for o in both.objects] == ["rbac", "rbac-shadow"]
    assert parse(both.yaml(), "x").policies[1].shadow


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"matcher": {}}, "P007"),
        ({"rules": {"action": "MAYBE"}}, "P101"),
        (rbac([{"any": True, "header": {}}]), "P005"),
        (rbac([{"url_path": {"path": {}}}]), "P105"),
        (rbac([{"destination_ip": cidr("nowhere", 8)}]), "P114"),
        (rbac([{"url_path": {"path": {"exakt": "/"}}}]), "P006"),
        ({"ruels": {}}, "P006"),
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as refused:
        imported(wrong)
    assert refused.value.problems[0].code == code
