"""`caadmin token`: one-time tokens by which a first agent proves that an operator sent it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import DURATION_HELP, duration, wire_id
from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.files import write_file
from ca.cli.output import Output, OutputOption, columns, emit, fields, timestamp, until

if TYPE_CHECKING:
    from ca.proto.burgee import admin_pb2

STRONG_BITS = 80
"""A random token has more, a word or a name that somebody made up has not."""

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
    write: Annotated[
        Path | None,
        typer.Option(help="Write it into this file (0600), for an agent's `token_file`, instead of printing it."),
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Create a join token and print it, or write it into a file."""
    from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc

    if value and _bits(value) < STRONG_BITS:
        print("warning: this token could be guessed, and whoever has it is a node of yours", file=sys.stderr)
        print("hint: leave out `--token`, and the server makes a random one", file=sys.stderr)
    request = server_agent_pb2.CreateJoinTokenRequest(ttl=duration(ttl), token=value)
    if spiffe_id is not None:
        request.agent_id.CopyFrom(wire_id(spiffe_id))
    with channel(server_socket(socket)) as opened:
        stub = server_agent_pb2_grpc.AgentStub(opened)
        made, call = stub.CreateJoinToken.with_call(request, timeout=CALL_SECONDS)
        metadata = dict(call.trailing_metadata() or ())
    token_id = str(metadata.get("burgee-token-id", ""))
    expires_at = timestamp(made.expires_at)
    data = {"token": made.value, "id": token_id, "expires_at": expires_at}
    shown = ("Token", made.value)
    if write is not None:
        write_file(write, f"{data.pop('token')}\n".encode())
        data["file"], shown = str(write), ("Written to", str(write))
    emit(data, output, lambda: fields([shown, ("ID", token_id or "-"), ("Expires", until(expires_at))]))


@app.command("list")
def list_(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List join tokens, by the time they expire: never a token itself, which only `token create` prints.

    `token create` prints a token's ID, and the audit log calls it so. Used tokens stay for some minutes, expired ones
    for a week.
    """
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    with channel(server_socket(socket)) as opened:
        stub = admin_pb2_grpc.AdminStub(opened)
        pages = stub.ListJoinTokens(admin_pb2.ListJoinTokensRequest(), timeout=CALL_SECONDS)
        tokens = [_value(made) for page in pages for made in page.tokens]
    emit({"tokens": tokens}, output, lambda: _table(tokens))


def _bits(value: str) -> float:
    """At most: as if each character had been drawn from those that are there."""
    return len(value) * math.log2(len(set(value)))


def _value(made: admin_pb2.JoinTokenInfo) -> dict[str, Any]:
    return {
        "id": made.id,
        "spiffe_id": made.spiffe_id,
        "state": made.state,
        "expires_at": timestamp(made.expires_at),
        "used_at": timestamp(made.used_at),
    }


def _table(tokens: list[dict[str, Any]]) -> str:
    rows = ([t["id"], t["state"], until(t["expires_at"]), t["used_at"] or "-", t["spiffe_id"] or "-"] for t in tokens)
    return columns(["ID", "STATE", "EXPIRES", "USED", "ALIAS"], rows, empty="no join tokens")
