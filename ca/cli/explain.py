"""`caadmin explain`: why a workload has no identity, and how an agent attested."""

from __future__ import annotations

from typing import Annotated

import typer

from ca.cli.connection import CALL_SECONDS, AgentSocketOption, SocketOption, agent_socket, channel, server_socket
from ca.cli.exits import Exit, leave
from ca.cli.output import Output, OutputOption, emit
from ca.errors import InvalidArgument

app = typer.Typer(help="Why not? What was looked at, what was found, and what to do next.")


@app.callback()
def _explain() -> None:
    """Why not? What was looked at, what was found, and what to do next."""


@app.command()
def workload(
    pid: Annotated[
        int | None, typer.Option(help="Attest this process now, as the Workload API would.", min=1, show_default=False)
    ] = None,
    refusal: Annotated[
        str, typer.Option("--id", help="Look up a refusal: the id that the refused caller was told.")
    ] = "",
    nearest: Annotated[int, typer.Option(help="How many entries to show that came near.", min=1, max=50)] = 3,
    output: OutputOption = Output.TABLE,
    agent_socket_path: AgentSocketOption = None,
) -> None:
    """Say why a process of this node has an identity or none: attestors, selectors, entries, verdict, next step.

    Exits with 3 if it has none.
    """
    from ca.cli.explain_pages import workload_page
    from ca.cli.explain_values import workload_value
    from ca.proto.burgee import agent_pb2, agent_pb2_grpc

    if (pid is None) == (not refusal):
        raise InvalidArgument("give either --pid or --id", reason="USAGE")
    request = agent_pb2.ExplainWorkloadRequest(pid=pid or 0, id=refusal, nearest=nearest)
    with channel(agent_socket(agent_socket_path), who="agent") as opened:
        data = workload_value(agent_pb2_grpc.AgentStub(opened).ExplainWorkload(request, timeout=CALL_SECONDS))
    emit(data, output, lambda: workload_page(data))
    leave(Exit.OK if data["verdict"]["identity"] else Exit.REFUSED)


@app.command()
def agent(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A SPIFFE ID, the end of one's path (such as a node's name), the address that an attempt came from, "
            "or the id that a refused agent was told.",
        ),
    ],
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Say how a node's agent attested, or why it did not: attempts, what was compared, state, entries, next step.

    Exits with 1 if something is wrong with it.
    """
    from ca.cli.explain_pages import agent_page
    from ca.cli.explain_values import agent_value
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    with channel(server_socket(socket)) as opened:
        request = admin_pb2.ExplainAgentRequest(name=name)
        data = agent_value(admin_pb2_grpc.AdminStub(opened).ExplainAgent(request, timeout=CALL_SECONDS))
    emit(data, output, lambda: agent_page(data))
    leave(Exit.OK if data["verdict"]["reason"] == "OK" else Exit.FAILED)
