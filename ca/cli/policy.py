"""`caadmin policy`: who may call whom. These commands work on files, and need no server."""

from __future__ import annotations

from collections.abc import Callable

import typer

from ca.cli import policy_offline, policy_offline_tools

app = typer.Typer(
    help="Policies: who may call whom. Exits with 1 on findings, differences and failed tests, with 2 on what cannot "
    "be read."
)


_COMMANDS: dict[str, Callable[..., None]] = {
    "validate": policy_offline.validate,
    "lint": policy_offline.lint,
    "test": policy_offline.run_tests,
    "explain": policy_offline.explain,
    "diff": policy_offline.diff,
    "graph": policy_offline_tools.graph,
    "replay": policy_offline_tools.replay,
    "suggest": policy_offline_tools.suggest,
    "import": policy_offline_tools.import_,
    "export": policy_offline_tools.export,
    "envoy-snippet": policy_offline_tools.envoy_snippet,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)
