"""`caadmin policy`: who may call whom: on a server, and on files without one."""

from __future__ import annotations

from collections.abc import Callable

import typer

from ca.cli import (
    policy_offline,
    policy_offline_tools,
    policy_online,
    policy_online_book,
    policy_online_sets,
    policy_online_views,
)

app = typer.Typer(
    help="Policies: who may call whom. Exits with 1 on findings, differences and failed tests, with 2 on what cannot "
    "be read."
)


_COMMANDS: dict[str, Callable[..., None]] = {
    "plan": policy_online.plan,
    "apply": policy_online.apply,
    "get": policy_online.get,
    "list": policy_online.list_,
    "delete": policy_online.delete,
    "rollback": policy_online.rollback,
    "rollout": policy_online_views.rollout,
    "watch": policy_online_views.watch,
    "decisions": policy_online_views.decisions,
    "validate": policy_offline.validate,
    "test": policy_offline.run_tests,
    "explain": policy_online_sets.explain,
    "lint": policy_online_sets.lint,
    "diff": policy_online_sets.diff,
    "graph": policy_online_sets.graph,
    "replay": policy_online_sets.replay,
    "suggest": policy_online_sets.suggest,
    "import": policy_offline_tools.import_,
    "export": policy_offline_tools.export,
    "envoy-snippet": policy_offline_tools.envoy_snippet,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)
app.add_typer(policy_online_book.revisions, name="revisions", no_args_is_help=True)
app.add_typer(policy_online_book.grants, name="grants", no_args_is_help=True)
app.add_typer(policy_online_book.invariants, name="invariants", no_args_is_help=True)
