"""`caadmin token`: one-time tokens by which a first agent proves that an operator sent it."""

from __future__ import annotations

from typing import Annotated

import typer

from ca.cli.arguments import DURATION_HELP, duration, wire_id
from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.output import Output, OutputOption, emit, fields, timestamp, until

app = typer.Typer(help="Join tokens: each lets one agent attest, once.")


@app.callback()
def token() -> None:
    """Join tokens: each lets one agent attest, once."""


@app.command()
def create(
    ttl: Annotated[str, typer.Option(help=f"How long it may be used. {DURATION_HELP}")] = "10m",
    spiffe_id: Annotated[
        str | None, typer.Option(help="An alias: entries under this ID are for the agent too.", show_default=False)
    ] = None,
    value: Annotated[str, typer.Option("--token", help="The token itself; the server makes one otherwise.")] = "",
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Create a join token and print it."""
    from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc

    request = server_agent_pb2.CreateJoinTokenRequest(ttl=duration(ttl), token=value)
    if spiffe_id is not None:
        request.agent_id.CopyFrom(wire_id(spiffe_id))
    with channel(server_socket(socket)) as opened:
        made = server_agent_pb2_grpc.AgentStub(opened).CreateJoinToken(request, timeout=CALL_SECONDS)
    expires_at = timestamp(made.expires_at)
    data = {"token": made.value, "expires_at": expires_at}
    emit(data, output, lambda: fields([("Token", made.value), ("Expires", until(expires_at))]))
