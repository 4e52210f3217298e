"""`caadmin token`: counted tokens by which an agent proves that an operator sent it."""

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

app = typer.Typer(help="Join tokens: each lets one agent attest, or as many as it was made for.")

NameOption = Annotated[
    str,
    typer.Option(
        help="What it is called in lists: up to 64 characters of a-z, 0-9, `.`, `_` and `-`.", show_default=False
    ),
]
UsesOption = Annotated[int, typer.Option(min=1, max=10_000, help="How many agents it makes.")]


@app.callback()
def token() -> None:
    """Join tokens: each lets one agent attest, or as many as it was made for."""


@app.command("generate", help="The same as `create`, by the name that SPIRE gives it.")
@app.command()
def create(
    ttl: Annotated[str, typer.Option(help=f"How long it may be used. {DURATION_HELP}")] = "10m",
    spiffe_id: Annotated[
        str | None, typer.Option(help="An alias: entries under this ID are for its agents too.", show_default=False)
    ] = None,
    name: NameOption = "",
    uses: UsesOption = 1,
    value: Annotated[
        str, typer.Option("--token", help="The token itself, where it serves once; the server makes one otherwise.")
    ] = "",
    write: Annotated[
        Path | None,
        typer.Option(help="Write it into this file (0600), for an agent's `token_file`, instead of printing it."),
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Create a join token and print it, or write it into a file.

    Each use makes an agent of its own. One token for a fleet: `caadmin token create --name web-fleet --uses 20`.
    """
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    if value and _bits(value) < STRONG_BITS:
        print("warning: this token could be guessed, and whoever has it is a node of yours", file=sys.stderr)
        print("hint: leave out `--token`, and the server makes a random one", file=sys.stderr)
    request = admin_pb2.CreateJoinTokenRequest(ttl_seconds=duration(ttl), token=value, name=name, uses=uses)
    if spiffe_id is not None:
        request.agent_id.CopyFrom(wire_id(spiffe_id))
    with channel(server_socket(socket)) as opened:
        made = admin_pb2_grpc.AdminStub(opened).CreateJoinToken(request, timeout=CALL_SECONDS)
    expires_at = timestamp(made.expires_at)
    data = {"token": made.token, "id": made.id, "name": name, "uses": uses, "expires_at": expires_at}
    shown = ("Token", made.token)
    if write is not None:
        write_file(write, f"{data.pop('token')}\n".encode())
        data["file"], shown = str(write), ("Written to", str(write))
    emit(data, output, lambda: fields([shown, ("ID", made.id), *_wishes(name, uses), ("Expires", until(expires_at))]))


@app.command("list")
def list_(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List join tokens, by the time they expire: never one that still serves, which only `token create` prints.

    `token create` prints a token's ID, and the audit log calls it so. Tokens that are used up stay for some minutes,
    expired and revoked ones for a week.
    """
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    with channel(server_socket(socket)) as opened:
        stub = admin_pb2_grpc.AdminStub(opened)
        pages = stub.ListJoinTokens(admin_pb2.ListJoinTokensRequest(), timeout=CALL_SECONDS)
        tokens = [_value(made) for page in pages for made in page.tokens]
    emit({"tokens": tokens}, output, lambda: _table(tokens))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Its name, or its ID, as `token list` shows them.")],
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """End a join token: it makes no more agents. Those that it made stay; ban or evict them with `caadmin agent`."""
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    with channel(server_socket(socket)) as opened:
        request = admin_pb2.RevokeJoinTokenRequest(name=name)
        ended = _value(admin_pb2_grpc.AdminStub(opened).RevokeJoinToken(request, timeout=CALL_SECONDS))
    emit(ended, output, lambda: _table([ended]))


def _wishes(name: str, uses: int) -> list[tuple[str, str]]:
    return [("Name", name)] * bool(name) + [("Uses", str(uses))] * (uses > 1)


def _bits(value: str) -> float:
    """At most: as if each character had been drawn from those that are there."""
    return len(value) * math.log2(len(set(value)))


def _value(made: admin_pb2.JoinTokenInfo) -> dict[str, Any]:
    return {
        "id": made.id,
        "name": made.name,
        "spiffe_id": made.spiffe_id,
        "state": made.state,
        "uses": made.uses,
        "uses_left": made.uses - made.used,
        "expires_at": timestamp(made.expires_at),
        "used_at": timestamp(made.used_at),
        "used_by": made.used_by,
    }


def _table(tokens: list[dict[str, Any]]) -> str:
    heads = ["ID", "NAME", "STATE", "LEFT", "EXPIRES", "LAST USED", "BY", "ALIAS"]
    return columns(heads, map(_row, tokens), empty="no join tokens")


def _row(t: dict[str, Any]) -> list[str]:
    left = f"{t['uses_left']}/{t['uses']}"
    last = [t["used_at"] or "-", t["used_by"] or "-"]
    return [t["id"], t["name"] or "-", t["state"], left, until(t["expires_at"]), *last, t["spiffe_id"] or "-"]
