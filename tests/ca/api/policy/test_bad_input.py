"""Bad policies over REST: each is told by a code, where it stands and what may help, and nothing is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ca.api.policy.strict_json import PLACED_BYTES
from tests.ca.api.policy.conftest import policy
from tests.ca.api.policy.http import Client

ONE = "/authorization-policies/shop/orders"
HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
YAML = "application/yaml"


def rule(**fields: Any) -> bytes:
    return json.dumps(policy(rules=[fields])).encode()


def condition(text: str) -> bytes:
    return rule(burgee={"condition": text})


CONDITION = "/spec/rules/0/burgee/condition"
PATH = "/spec/rules/0/to/0/operation/paths/0"
# What is sent → how → code and pointer.
CASES: dict[str, tuple[bytes, str, str, str]] = {
    "an anchor": (f"{HEAD}spec: &a {{}}".encode(), YAML, "P003", ""),
    "a tag": (f"{HEAD}spec: !!python/object:os.system {{}}".encode(), YAML, "P003", ""),
    "no UTF-8": (f"{HEAD}spec: ".encode() + b"\xff", YAML, "P001", ""),
    "a key twice": (f"{HEAD}spec: {{action: DENY, action: ALLOW}}".encode(), YAML, "P004", ""),
    "a key twice in JSON": (b'{"kind": "a",\n "kind": "b"}', "application/json", "P004", ""),
    "NUL": (rule(to=[{"operation": {"paths": ["/\0"]}}]), "application/json", "P001", PATH),
    "a number that is too large": (rule(x=1 << 70), "application/json", "P001", "/spec/rules/0/x"),
    "no UTF-8 in JSON": (b'{"kind": "\xff"}', "application/json", "P001", ""),
    "a deep condition": (condition("!(" * 1000 + "true" + ")" * 1000), "application/json", "P132", CONDITION),
    "a long condition": (condition("true || " * 2000 + "true"), "application/json", "P132", CONDITION),
    "an expression that is none": (condition("request.path.matches('(')"), "application/json", "P132", CONDITION),
    "a template that is none": (
        rule(to=[{"operation": {"paths": ["/{**}/{**}"]}}]), "application/json", "P116", PATH,
    ),
    "a number for a text": (rule(to=[{"operation": {"paths": [1]}}]), "application/json", "P005", PATH),
    "a field that is not known": (
        rule(to=[{"operation": {"path": ["/"]}}]), "application/json", "P006", "/spec/rules/0/to/0/operation/path",
    ),
    "a list for a mapping": (rule(to={"operation": {}}), "application/json", "P005", "/spec/rules/0/to"),
    "a long text": (rule(to=[{"operation": {"paths": ["/" + "x" * 70_000]}}]), "application/json", "P002", PATH),
    "a hundred thousand rules": (
        json.dumps(policy(rules=[{}] * 100_000)).encode(), "application/json", "P108", "/spec/rules",
    ),
}  # fmt: skip


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
async def test_what_is_bad_is_told_and_changes_nothing(local: Client, query: str) -> None:
    found = {}
    for name, (data, media, _, _) in CASES.items():
        answer = await local("PUT", f"{ONE}{query}", raw=data, media=media)
        assert answer.status == 400, (name, answer.data[:500])
        assert answer.headers["content-type"].startswith("application/problem+json")
        error = answer.body["errors"][0]
        assert len(data) > PLACED_BYTES or error["line"] >= 1, (name, error)
        assert error.get("hint"), (name, error)
        found[name] = error["code"], error["pointer"]
    assert found == {name: (code, pointer) for name, (_, _, code, pointer) in CASES.items()}
    assert (await local("GET", "/revisions")).body["items"] == []
