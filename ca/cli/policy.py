"""`caadmin policy`: who may call whom: on a server, and on files without one."""

from __future__ import annotations

from collections.abc import Callable

import typer

from ca.cli import (
    policy_effective,
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


_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "plan": (policy_online.plan, "What `apply` would do, and which requests it changes."),
    "apply": (policy_online.apply, "Make the server have what the files say."),
    "get": (policy_online.get, "Print an object as it was written."),
    "list": (policy_online.list_, "List policies and Workload objects."),
    "delete": (policy_online.delete, "Delete objects, as one revision."),
    "rollback": (policy_online.rollback, "Go back to a revision."),
    "rollout": (policy_online_views.rollout, "Which policies agents and proxies have."),
    "watch": (policy_online_views.watch, "Print revisions as they come."),
    "decisions": (policy_online_views.decisions, "What was allowed and denied, the newest first."),
    "validate": (policy_offline.validate, "Read files, and tell what is wrong with them."),
    "test": (policy_offline.run_tests, "Decide the requests of test files."),
    "explain": (policy_online_sets.explain, "Why a request is, or was, allowed or denied."),
    "lint": (policy_online_sets.lint, "Find rules and policies that do nothing, or too much."),
    "diff": (policy_online_sets.diff, "Which requests are decided otherwise by other policies."),
    "graph": (policy_online_sets.graph, "Draw who can reach whom."),
    "replay": (policy_online_sets.replay, "Decide a log's requests again, by other policies."),
    "suggest": (policy_online_sets.suggest, "Write policies that allow what a log shows."),
    "import": (policy_offline_tools.import_, "Write Consul's, Linkerd's or Envoy's policies as ours."),
    "effective": (policy_effective.effective, "What the Envoy of a workload is sent."),
    "export": (policy_offline_tools.export, "Write policies as an Envoy's filter, or as Cedar."),
    "envoy-snippet": (policy_offline_tools.envoy_snippet, "What a proxy's configuration needs."),
}
"""With the line by which `caadmin policy --help` lists each: what fits beside its name on a terminal of 80 columns."""

for name, (command, listed) in _COMMANDS.items():
    app.command(name, short_help=listed)(command)
app.add_typer(policy_online_book.revisions, name="revisions", no_args_is_help=True)
app.add_typer(policy_online_book.grants, name="grants", no_args_is_help=True)
app.add_typer(policy_online_book.invariants, name="invariants", no_args_is_help=True)
