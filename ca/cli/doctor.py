"""`caadmin doctor`: each prerequisite of the server, the agent or a cluster, how it is and what mends it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ca.cli.connection import (
    AgentSocketOption,
    Remote,
    SocketOption,
    agent_socket,
    channel,
    server_socket,
)
from ca.cli.exits import Exit, leave
from ca.cli.output import Output, OutputOption, bold, emit, green, plain, red
from ca.errors import BurgeeError, NotFound

CHECK_SECONDS = 90.0


class Patient(StrEnum):
    """Who is to be looked at."""

    SERVER = "server"
    AGENT = "agent"
    CLUSTER = "cluster"


def doctor(
    patient: Annotated[
        Patient | None,
        typer.Argument(
            help="Whom to look at. Default: the server and the agent, whichever runs here.",
            metavar="server|agent|cluster",
            show_default=False,
        ),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="With cluster: as whom to ask its API server. Default: the pod's own.", show_default=False),
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
    agent_socket_path: AgentSocketOption = None,
) -> None:
    """Look at every prerequisite: clocks, reachability, bundles, permissions, sockets, entries, lives. Changes nothing.

    Exits with 1 when something failed; warnings alone are no failure.
    """
    server, agent = server_socket(socket), agent_socket(agent_socket_path)
    if patient is Patient.CLUSTER:
        from ca.cli.doctor_cluster import cluster_findings

        reports = {"cluster": cluster_findings(kubeconfig)}
    elif patient is Patient.SERVER:
        reports = {"server": server_findings(server)}
    elif patient is Patient.AGENT:
        reports = {"agent": agent_findings(agent)}
    else:
        reports = _whoever_is_here(server, agent)
    emit(reports, output, lambda: "\n\n".join(_page(name, found) for name, found in reports.items()))
    failed = any(one["level"] == "failed" for found in reports.values() for one in found)
    leave(Exit.FAILED if failed else Exit.OK)


def server_findings(socket: Path | Remote) -> list[dict[str, str]]:
    """What the server found, looking at itself."""
    from ca.proto.burgee import admin_pb2_grpc, doctor_pb2

    with channel(socket) as opened:
        stub = admin_pb2_grpc.AdminStub(opened)
        return _values(stub.GetDoctorReport(doctor_pb2.DoctorRequest(), timeout=CHECK_SECONDS))


def agent_findings(socket: Path) -> list[dict[str, str]]:
    """What the agent found, looking at itself and at its server."""
    from ca.proto.burgee import agent_pb2_grpc, doctor_pb2

    with channel(socket, who="agent") as opened:
        stub = agent_pb2_grpc.AgentStub(opened)
        return _values(stub.Doctor(doctor_pb2.DoctorRequest(), timeout=CHECK_SECONDS))


def _whoever_is_here(server: Path | Remote, agent: Path) -> dict[str, list[dict[str, str]]]:
    """A socket that is there is asked; one that answers nobody is a finding."""
    reports: dict[str, list[dict[str, str]]] = {}
    if isinstance(server, Remote) or server.exists():
        reports["server"] = _asked(lambda: server_findings(server))
    if agent.exists():
        reports["agent"] = _asked(lambda: agent_findings(agent))
    if not reports:
        raise NotFound(
            f"neither a server nor an agent is here: there is no `{server}` and no `{agent}`",
            reason="DOCTOR_NOBODY",
            hint="say where they are with --socket and --agent-socket",
        )
    return reports


def _asked(ask: Any) -> list[dict[str, str]]:
    try:
        found: list[dict[str, str]] = ask()
    except BurgeeError as error:
        detail = f"{error.detail} ({error.reason})"
        return [{"what": "running", "level": "failed", "detail": detail, "hint": error.hint}]
    return found


def _values(answer: Any) -> list[dict[str, str]]:
    return [{"what": f.what, "level": f.level, "detail": f.detail, "hint": f.hint} for f in answer.findings]


def _page(name: str, findings: list[dict[str, str]]) -> str:
    marks = {"ok": green("ok     "), "warning": red("warning"), "failed": red("FAILED ")}
    lines: list[str] = [bold(name)]
    for one in findings:
        lines.append(f"  {marks.get(one['level'], plain(one['level']))}  {plain(one['what'])}: {plain(one['detail'])}")
        if one["hint"] and one["level"] != "ok":
            lines.append(f"           fix: {plain(one['hint'])}")
    return "\n".join(lines)
