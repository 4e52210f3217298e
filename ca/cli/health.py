"""`caadmin health`: are server and agent well, and if not, why and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ca.cli.connection import (
    AGENT_SOCKET,
    AGENT_VARIABLE,
    CALL_SECONDS,
    Remote,
    SocketOption,
    agent_socket,
    channel,
    server_socket,
)
from ca.cli.exits import Exit, leave
from ca.cli.output import Output, OutputOption, emit, fields, green, red, timestamp, until


def health(
    agent: Annotated[
        bool, typer.Option("--agent", help="Ask the agent on this machine instead of the server.")
    ] = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
    agent_socket_path: Annotated[
        Path | None,
        typer.Option(
            "--agent-socket",
            envvar=AGENT_VARIABLE,
            show_default=False,
            help="The agent's admin socket, with --agent. Default: that of the `burgee up` which runs in this "
            f"directory, else {AGENT_SOCKET}.",
        ),
    ] = None,
) -> None:
    """Say whether the server (or agent) can do its work, and if not, why and what to do. Exits with 1 if not."""
    data = agent_status(agent_socket(agent_socket_path)) if agent else server_status(server_socket(socket))
    emit(data, output, lambda: _agent_table(data) if agent else _server_table(data))
    leave(Exit.OK if data["healthy"] else Exit.FAILED)


def server_status(socket: Path | Remote) -> dict[str, Any]:
    """What the server says of itself."""
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    with channel(socket) as opened:
        status = admin_pb2_grpc.AdminStub(opened).GetStatus(admin_pb2.GetStatusRequest(), timeout=CALL_SECONDS)
    return {
        "healthy": status.ready,
        "trust_domain": status.trust_domain,
        "version": status.version,
        "started_at": timestamp(status.started_at),
        "connected_agents": status.connected_agents,
        "store_epoch": status.store_epoch,
        "revision": status.revision,
        "problems": [{"reason": p.reason, "detail": p.detail, "hint": p.hint} for p in status.problems],
    }


def agent_status(socket: Path) -> dict[str, Any]:
    """What the agent says of itself."""
    from ca.proto.burgee import agent_pb2, agent_pb2_grpc

    with channel(socket, who="agent") as opened:
        status = agent_pb2_grpc.AgentStub(opened).GetStatus(agent_pb2.GetStatusRequest(), timeout=CALL_SECONDS)
    return {
        "healthy": status.state == "OK",
        "state": status.state,
        "reason": status.reason,
        "detail": status.detail,
        "spiffe_id": status.spiffe_id,
        "version": status.version,
        "started_at": timestamp(status.started_at),
        "svid_expires_at": timestamp(status.svid_not_after),
        "can_reattest": status.reattestable,
        "server_address": status.server_address,
        "last_sync_at": timestamp(status.last_sync_at),
        "sync_mode": status.sync_mode,
        "entries": status.entries,
        "x509_svids": status.x509_svids,
        "jwt_svids": status.jwt_svids,
        "workload_streams": status.workload_streams,
        "sds_streams": status.sds_streams,
        "first_workload_expires_at": timestamp(status.first_workload_expiry),
        "policy_revision": status.policy_revision,
        "policy_detail": status.policy_detail,
    }


def _server_table(data: dict[str, Any]) -> str:
    lines = fields(
        [
            ("Server", green("healthy") if data["healthy"] else red("not healthy")),
            ("Trust domain", data["trust_domain"]),
            ("Version", data["version"]),
            ("Started", until(data["started_at"])),
            ("Agents", data["connected_agents"]),
        ]
    )
    for problem in data["problems"]:
        lines += f"\n{red(problem['reason'])}: {problem['detail']}"
        lines += f"\n  hint: {problem['hint']}" if problem["hint"] else ""
    return lines


def _policies(data: dict[str, Any]) -> str:
    revision = f"revision {data['policy_revision']}" if data["policy_revision"] else ""
    return ": ".join(part for part in (revision, data["policy_detail"]) if part)


def _agent_table(data: dict[str, Any]) -> str:
    why = f"{data['detail']} ({data['reason']})" if data["reason"] else None
    return fields(
        [
            ("Agent", green(data["state"]) if data["healthy"] else red(data["state"])),
            ("Why", why),
            ("SPIFFE ID", data["spiffe_id"]),
            ("SVID expires", until(data["svid_expires_at"]) if data["svid_expires_at"] else "it has none"),
            ("Can re-attest", "yes" if data["can_reattest"] else "no"),
            ("Server", data["server_address"]),
            ("Last sync", until(data["last_sync_at"])),
            ("Synced by", data["sync_mode"]),
            ("Entries", data["entries"]),
            ("X.509-SVIDs", data["x509_svids"]),
            ("First to expire", until(first) if (first := data["first_workload_expires_at"]) else None),
            ("Streams", f"{data['workload_streams']} of workloads, {data['sds_streams']} of Envoys"),
            ("Policies", _policies(data) or None),
            ("Version", data["version"]),
        ]
    )
