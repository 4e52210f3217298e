"""`caadmin policy` for who comes from other tools: files named either way, short names, hints that name the option."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from ca.cli import policy
from ca.cli.policy_names import kind_of, names_of
from ca.errors import InvalidArgument
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair, pair

WEB, ORDERS = (f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/{name}" for name in ("web", "orders"))
FILE = f"""
apiVersion: burgee.io/v1
kind: Workload
metadata: {{name: orders, namespace: shop}}
spec: {{spiffeId: "{ORDERS}"}}
---
apiVersion: burgee.io/v1
kind: Workload
metadata: {{name: web, namespace: shop}}
spec: {{spiffeId: "{WEB}"}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: orders, namespace: shop}}
spec:
  rules:
  - from: [{{source: {{principals: ["{WEB.removeprefix("spiffe://")}"]}}}}]
"""
JWKS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: shop}
spec:
  jwtRules: [{issuer: "https://issuer.example", jwksUri: "https://issuer.example/keys"}]
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "p.yaml").write_text(FILE)
    return "p.yaml"


def test_each_command_is_listed_by_a_line_that_fits_a_terminal() -> None:
    group = typer.main.get_command(policy.app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert not command.get_short_help_str(58).endswith("..."), name


def test_validate_takes_files_either_way(caadmin: Caadmin, file: str) -> None:
    for named in ([file], ["-f", file]):
        ran = caadmin("policy", "validate", *named)
        assert (ran.code, ran.out) == (0, "valid: 1 AuthorizationPolicy, 2 Workload\n")


def test_names_that_are_none_are_told_what_would_be_one() -> None:
    with pytest.raises(InvalidArgument) as caught:
        names_of("orders")
    assert "shop/orders" in caught.value.hint
    with pytest.raises(InvalidArgument) as caught:
        kind_of("Gateway")
    assert "ap" in caught.value.hint.replace(",", "").split()


def test_who_calls_may_be_named_by_its_last_part(caadmin: Caadmin, file: str) -> None:
    for caller in ("web", WEB, WEB.removeprefix("spiffe://")):
        ran = caadmin("policy", "explain", "orders", "--from", caller, "-f", file)
        assert ran.out.startswith("allowed"), ran.err
    ran = caadmin("policy", "explain", "orders", "--from", "wbe", "-f", file)
    assert (ran.code, ran.out) == (2, "")
    assert "no workload is called `wbe`" in ran.err


def test_on_a_server_too(live: Caadmin, file: str, tmp_path: Path) -> None:
    assert "--file" in live("policy", "plan").err
    assert live("policy", "plan", "-f", file).code == 4
    assert live("policy", "apply", "-f", file, "--owner", "shop").code == 0
    assert live("policy", "explain", ORDERS, "--from", "web").out.startswith("allowed")
    assert live("policy", "explain", "orders", "--from", WEB).out.startswith("allowed")
    assert "no workload is called `wbe`" in live("policy", "explain", "orders", "--from", "wbe").err
    assert "--take-over" in live("policy", "delete", "ap", "shop/orders", "--yes").err
    assert "caadmin policy revisions list" in live("policy", "rollback", "77").err
    (tmp_path / "jwt.yaml").write_text(JWKS)
    ran = live("policy", "plan", "-f", "jwt.yaml")
    assert "jwt.yaml:6:" in ran.err
    assert "`policy.jwks_hosts`" in ran.err
    assert "error: 1 problem in what was sent (POLICY_INVALID)" in ran.err
    ran = live("policy", "grants", "set", "ci", "--spiffe-id", "ci", "--role", "reader", "-n", "shop")
    assert "must be a SPIFFE ID" in ran.err


def test_decisions_by_how_long_ago(live: Caadmin) -> None:
    ran = live("policy", "decisions", "--since", "10m", "--until", "5m")
    assert (ran.code, ran.out) == (0, "no decisions\n")
    assert "--agent" in ran.err
    assert live("policy", "decisions", "--since", "yesterday").code == 2
    ran = live("policy", "decisions", "--follow", "--since", "10m")
    assert (ran.code, "begins now" in ran.err) == (2, True)


def test_a_finding_says_what_to_do(caadmin: Caadmin, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        FILE.replace("spec:\n  rules:", "spec:\n  selector: {matchLabels: {app: x}}\n  rules:")
    )
    ran = caadmin("policy", "lint", "-f", "p.yaml")
    first, hint = ran.out.splitlines()
    assert (ran.code, first.endswith("(L010)")) == (1, True)
    assert hint.startswith("    ")
    assert "--workloads" in hint


def test_an_invariant_for_nobody_is_said_to_be_so(live: Caadmin, tmp_path: Path) -> None:
    text = """
apiVersion: burgee.io/v1
kind: Invariant
metadata: {name: misspelt}
spec: {never: "shop/web -> shop/odrers"}
"""
    (tmp_path / "i.yaml").write_text(text)
    ran = live("policy", "invariants", "set", "i.yaml")
    assert (ran.code, ran.out) == (0, "1 invariant holds\n")
    assert "misspelt: no workload that is known is meant" in ran.err
    (tmp_path / "p.yaml").write_text(FILE)
    ran = live("policy", "invariants", "set", "p.yaml")  # before anybody is asked whether the first may go
    assert (ran.code, "P007" in ran.err, "lost" in ran.err) == (2, True, False)
    assert live("policy", "invariants", "set", "--clear", "--yes").err == ""
