"""`caadmin prune`: have the server forget what is over, now instead of at its next pass."""

from __future__ import annotations

from typing import Annotated

import typer

from ca.cli.arguments import DURATION_HELP, duration
from ca.cli.connection import SocketOption, channel, server_socket
from ca.cli.output import Output, OutputOption, emit, fields

PRUNE_SECONDS = 600.0


def prune(
    agents_expired_for: Annotated[
        str,
        typer.Option(
            help=f"Forget agents whose SVID expired longer ago than this; as configured otherwise. {DURATION_HELP}",
            show_default=False,
        ),
    ] = "0",
    first_use_agents: Annotated[
        bool,
        typer.Option(
            "--first-use-agents",
            help="Also agents that were trusted on first use; their evidence could then be used once more.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and forget nothing.")] = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Forget expired agents, entries and join tokens, and records past their retention.

    The server does so by itself every hour; `prune` in its configuration says what is kept how long. Banned agents
    always stay.
    """
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    request = admin_pb2.PruneRequest(
        agents_expired_for_seconds=duration(agents_expired_for), dry_run=dry_run, first_use_agents=first_use_agents
    )
    with channel(server_socket(socket)) as opened:
        done = admin_pb2_grpc.AdminStub(opened).Prune(request, timeout=PRUNE_SECONDS)
    data = {
        "dry_run": dry_run,
        "agents": list(done.agents),
        "entries": list(done.entries),
        "join_tokens": done.join_tokens,
        "used_evidence": done.used_evidence,
        "issuance_batches": done.issuance_batches,
        "audit_records": done.audit_records,
        "changes": done.changes,
        "policy_revisions": done.policy_revisions,
    }
    rows = [
        ("Agents", list(done.agents) or 0),
        ("Entries", list(done.entries) or 0),
        ("Join tokens", done.join_tokens),
        ("Used evidence", done.used_evidence),
        ("Issuance batches", done.issuance_batches),
        ("Audit records", done.audit_records),
        ("Changes", done.changes),
        ("Revisions of policies", done.policy_revisions),
    ]
    head = "would be forgotten:" if dry_run else "forgotten:"
    emit(data, output, lambda: f"{head}\n{fields(rows)}")
