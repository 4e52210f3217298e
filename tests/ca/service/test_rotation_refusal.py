"""A refusal names a command that there is, for a root of the upstream too."""

from __future__ import annotations

import typer
from typer.main import get_command

from ca.authority.actions import Activate, Prune, Revoke, RevokeUpstream, TaintUpstream
from ca.authority.journal import Journal
from ca.cli.caadmin import program
from ca.service.rotation_guard_port import Blocker
from ca.service.rotation_guarding import refuse
from ca.service.rotation_plan import Plan, Step
from tests.ca.service.test_rotation_walk import OLD, one

BLOCKER = Blocker(kind="agent", who="spiffe://example.org/n", reason="AGENT_SILENT", detail="has said nothing")


def command(step: Step) -> str:
    target = one("a", OLD, upstream_authority_id="root")
    plan = Plan(step=step, before=Journal(), after=Journal(), targets=(target,), blockers=(BLOCKER,))
    return plan.command


def test_the_command_is_one_of_caadmin() -> None:
    ca = get_command(program()).commands["ca"]  # type: ignore[attr-defined]
    assert isinstance(ca, typer.core.TyperGroup)
    for step, expected in {
        Activate("a"): "activate x509 a",
        Prune("a"): "prune x509 a",
        Revoke("a"): "revoke x509 a",
        TaintUpstream("root"): "taint x509 root",
        RevokeUpstream("root"): "revoke x509 root",
    }.items():
        assert command(step) == expected
        assert expected.split()[0] in ca.commands


def test_a_refusal_says_who_and_how_to_overrule_it() -> None:
    refusal = refuse(command(RevokeUpstream("root")), [BLOCKER] * 5)
    assert refusal.detail.startswith("to revoke x509 root would cut off 5: agent `spiffe://example.org/n`")
    assert refusal.detail.endswith("and 2 more. `caadmin ca revoke x509 root --force` does so")
