"""Where server and agent are, and calls on them whose errors are the error family's.

One rule for each of the three sockets: the option, else its environment variable, else that of the `burgee up` which
runs in this directory, else the default of an installed server or agent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.errors import BurgeeError, Unavailable, Unimplemented

if TYPE_CHECKING:
    import grpc

CALL_SECONDS = 30.0
STATUS_FILE = Path(".burgee/status.json")
SERVER_SOCKET = Path("/var/lib/burgee/server/run/admin.sock")
AGENT_SOCKET = Path("/var/lib/burgee/agent/run/admin.sock")
SERVER_VARIABLE = "BURGEE_ADMIN_SOCKET"
AGENT_VARIABLE = "BURGEE_AGENT_SOCKET"
_UNKNOWN_CALL = ("UNKNOWN_METHOD", Unimplemented.reason)
"""Ours, and what SPIRE's answer becomes."""

SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        envvar=SERVER_VARIABLE,
        show_default=False,
        help="The server's admin socket. Default: that of the `burgee up` which runs in this directory, "
        f"else {SERVER_SOCKET}.",
    ),
]
AgentSocketOption = Annotated[
    Path | None,
    typer.Option(
        "--agent-socket",
        envvar=AGENT_VARIABLE,
        show_default=False,
        help="The agent's admin socket. Default: that of the `burgee up` which runs in this directory, "
        f"else {AGENT_SOCKET}.",
    ),
]


@dataclass(frozen=True, slots=True)
class Remote:
    """A server on another machine, as `host:port`, and as whom to administer it (see `ca.cli.remote`)."""

    address: str
    svid_dir: Path | None = None
    spiffe_id: str | None = None


_chosen: list[Remote] = []


@contextmanager
def administering(remote: Remote | None) -> Iterator[None]:
    """Commands in the `with` administer this server instead of the local one; None changes nothing."""
    if remote is None:
        yield
        return
    _chosen.append(remote)
    try:
        yield
    finally:
        _chosen.pop()


def server_socket(given: Path | None) -> Path | Remote:
    """The server's admin socket, or the remote server that was chosen instead."""
    if _chosen:
        return _chosen[-1]
    return given or _running("server", "admin_socket") or SERVER_SOCKET


def agent_socket(given: Path | None) -> Path:
    """The agent's admin socket."""
    return given or _running("agent", "admin_socket") or AGENT_SOCKET


def workload_socket() -> Path | None:
    """The Workload API socket of a `burgee up` in this directory, if one runs."""
    return _running("agent", "workload_socket")


def _running(part: str, key: str) -> Path | None:
    """From `status.json`. Only a file of our own or root's is believed: it says whom we talk to."""
    try:
        if STATUS_FILE.stat().st_uid not in (0, os.geteuid()):
            return None
        return Path(json.loads(STATUS_FILE.read_bytes())[part][key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def channel(socket: Path | Remote, *, who: str = "server") -> Iterator[grpc.Channel]:
    """A channel for the length of a `with`. Raises the error that the other side reported."""
    import grpc

    if isinstance(socket, Remote):
        from ca.cli.remote import remote_channel

        with remote_channel(socket) as opened:
            yield opened
        return
    opened = grpc.insecure_channel(
        grpc_target(socket),
        options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)],
    )
    with opened, translated(socket, who):
        yield opened


@contextmanager
def translated(where: Path | str, who: str) -> Iterator[None]:
    """RPC errors come out as the error family."""
    import grpc

    try:
        yield
    except grpc.RpcError as error:
        raise _error(error, where, who) from error


def _error(error: Any, where: Path | str, who: str) -> BurgeeError:
    import grpc

    from ca.runtime.rpc_errors import error_of

    answered = error_of(error)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED and answered.reason in _UNKNOWN_CALL:
        from ca.cli.sockets import Kind, advice

        wanted = {"server": Kind.SERVER, "agent": Kind.AGENT}.get(who, Kind.WORKLOAD)
        answered.hint = answered.hint or advice(grpc_target(where), wanted)
    if error.code() is not grpc.StatusCode.UNAVAILABLE or answered.reason != Unavailable.reason:
        return answered
    asked = "Workload API" if who == "SPIFFE_ENDPOINT_SOCKET" else who
    return Unavailable(f"no {asked} answers at `{where}`", reason="UNREACHABLE", hint=_advice(where, who))


def grpc_target(where: Path | str) -> str:
    """An address of ours as gRPC writes it."""
    return f"unix:{where.absolute()}" if isinstance(where, Path) else where.removeprefix("tcp://").replace("://", ":")


def _advice(where: Path | str, who: str) -> str:
    option, variable = {
        "server": ("--socket", SERVER_VARIABLE),
        "agent": ("--agent-socket", AGENT_VARIABLE),
    }.get(who, ("--endpoint", "SPIFFE_ENDPOINT_SOCKET"))
    if isinstance(where, Path) and where.exists() and not os.access(where, os.W_OK):
        return "you may not use this socket; become root, or be named in `admin_uids` or `admin_group`"
    return f"start {'the agent' if option == '--endpoint' else 'it'}, or say where it is with {option} or {variable}"
