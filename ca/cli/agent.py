"""`caadmin agent`: the agents that the server has attested, and what an agent's Envoys made of their secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import instant, wire_id
from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.entry_options import Match, MatchOption, SelectorOption, selector_match
from ca.cli.exits import exit_of_batch, leave
from ca.cli.output import Output, OutputOption, columns, emit, fields, red, timestamp, until
from ca.cli.sds import sds
from ca.cli.values import agent_value
from ca.errors import STATUS, BurgeeError, InvalidArgument

if TYPE_CHECKING:
    import grpc

    from ca.proto.spire import server_agent_pb2_grpc, types_pb2

app = typer.Typer(help="Agents: one per node, each proven to be on the node it claims.")
app.command("sds")(sds)

PAGE = 500

IdsArgument = Annotated[list[str], typer.Argument(metavar="SPIFFE_ID...", help="The agents' SPIFFE IDs.")]
TypeFilter = Annotated[str, typer.Option("--attestation-type", help="Only attested by this method.")]
BannedFilter = Annotated[bool | None, typer.Option("--banned/--not-banned", help="Only (not) banned.")]
ReattestFilter = Annotated[bool | None, typer.Option("--can-reattest/--cannot-reattest", help="Only those that can.")]
ExpiresFilter = Annotated[str, typer.Option("--expires-before", help="Only those whose SVID ends before: RFC 3339.")]


@app.command("list")
def list_(
    attestation_type: TypeFilter = "",
    banned: BannedFilter = None,
    can_reattest: ReattestFilter = None,
    expires_before: ExpiresFilter = "",
    selector: SelectorOption = None,
    match_selectors: MatchOption = Match.SUPERSET,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """List agents, all of them or those that match every given filter."""
    from ca.proto.spire import server_agent_pb2

    request = server_agent_pb2.ListAgentsRequest(page_size=PAGE)
    _fill(request.filter, attestation_type, banned, can_reattest, expires_before, selector, match_selectors)
    with channel(server_socket(socket)) as opened:
        agents = [agent_value(agent) for agent in _pages(_stub(opened), request)]
    emit({"agents": agents}, output, lambda: _table(agents))


@app.command()
def show(
    spiffe_id: Annotated[str, typer.Argument(metavar="SPIFFE_ID", help="The agent's SPIFFE ID.")],
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show one agent."""
    from ca.proto.spire import server_agent_pb2

    request = server_agent_pb2.GetAgentRequest(id=wire_id(spiffe_id))
    with channel(server_socket(socket)) as opened:
        value = agent_value(_stub(opened).GetAgent(request, timeout=CALL_SECONDS))
    emit(value, output, lambda: _details(value))


@app.command()
def evict(spiffe_ids: IdsArgument, output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Forget agents: each must attest again, and may. Also lifts a ban."""
    from ca.proto.spire import server_agent_pb2

    with channel(server_socket(socket)) as opened:
        stub = _stub(opened)
        _each(
            spiffe_ids,
            lambda wire: stub.DeleteAgent(server_agent_pb2.DeleteAgentRequest(id=wire), timeout=CALL_SECONDS),
            output,
            "evicted",
        )


@app.command()
def ban(spiffe_ids: IdsArgument, output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Shut agents out: their connections close at once and they cannot attest again until they are evicted."""
    from ca.proto.spire import server_agent_pb2

    with channel(server_socket(socket)) as opened:
        stub = _stub(opened)
        _each(
            spiffe_ids,
            lambda wire: stub.BanAgent(server_agent_pb2.BanAgentRequest(id=wire), timeout=CALL_SECONDS),
            output,
            "banned",
        )


@app.command()
def count(
    attestation_type: TypeFilter = "",
    banned: BannedFilter = None,
    can_reattest: ReattestFilter = None,
    expires_before: ExpiresFilter = "",
    selector: SelectorOption = None,
    match_selectors: MatchOption = Match.SUPERSET,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Count agents, all of them or those that match every given filter."""
    from ca.proto.spire import server_agent_pb2

    request = server_agent_pb2.CountAgentsRequest()
    _fill(request.filter, attestation_type, banned, can_reattest, expires_before, selector, match_selectors)
    with channel(server_socket(socket)) as opened:
        number = _stub(opened).CountAgents(request, timeout=CALL_SECONDS).count
    emit({"count": number}, output, lambda: str(number))


def _stub(opened: grpc.Channel) -> server_agent_pb2_grpc.AgentStub:
    from ca.proto.spire import server_agent_pb2_grpc

    return server_agent_pb2_grpc.AgentStub(opened)


def _pages(stub: server_agent_pb2_grpc.AgentStub, request: Any) -> Iterator[types_pb2.Agent]:
    while True:
        page = stub.ListAgents(request, timeout=CALL_SECONDS)
        yield from page.agents
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _fill(
    message: Any,
    attestation_type: str,
    banned: bool | None,
    can_reattest: bool | None,
    expires_before: str,
    selectors: list[str] | None,
    match: Match,
) -> None:
    """Into a ListAgentsRequest.Filter or a CountAgentsRequest.Filter."""
    message.by_attestation_type = attestation_type
    if banned is not None:
        message.by_banned.value = banned
    if can_reattest is not None:
        message.by_can_reattest.value = can_reattest
    if expires_before:
        message.by_expires_before = timestamp(instant(expires_before)) or ""
    if selectors:
        message.by_selector_match.CopyFrom(selector_match(selectors, match))


def _each(spiffe_ids: list[str], call: Callable[[Any], object], output: Output, done: str) -> None:
    """Try every ID; the exit code tells whether all went well. A server that is not there ends it at once."""
    results = [_try(spiffe_id, call) for spiffe_id in spiffe_ids]
    shown = [
        {
            "spiffe_id": name,
            "status": {
                "code": error.code.value if error else "OK",
                "reason": error.reason if error else "",
                "message": error.detail if error else "",
            },
        }
        for name, error in results
    ]

    def line(name: str, error: BurgeeError | None) -> str:
        return red(f"{name} not {done}: {error.detail} ({error.reason})") if error else f"{name} {done}"

    emit({"results": shown}, output, lambda: "\n".join(line(name, error) for name, error in results))
    leave(exit_of_batch(STATUS[error.code][0] if error else 0 for _, error in results))


def _try(spiffe_id: str, call: Callable[[Any], object]) -> tuple[str, BurgeeError | None]:
    import grpc

    from ca.runtime.rpc_errors import error_of

    try:
        call(wire_id(spiffe_id))
    except InvalidArgument as error:
        return spiffe_id, error
    except grpc.RpcError as error:
        failed: Any = error  # the declared type hides that a call's error has code() and details()
        if failed.code() is grpc.StatusCode.UNAVAILABLE:
            raise
        return spiffe_id, error_of(failed)
    return spiffe_id, None


def _state(agent: dict[str, Any]) -> str:
    return "banned" if agent["banned"] else "attested"


def _table(agents: list[dict[str, Any]]) -> str:
    rows = (
        [a["spiffe_id"], a["attestation_type"], _state(a), until(a["expires_at"]), a["agent_version"]] for a in agents
    )
    return columns(["SPIFFE ID", "ATTESTED BY", "STATE", "SVID EXPIRES", "VERSION"], rows, empty="no agents")


def _details(agent: dict[str, Any]) -> str:
    return fields(
        [
            ("SPIFFE ID", agent["spiffe_id"]),
            ("State", _state(agent)),
            ("Attested by", agent["attestation_type"]),
            ("Can re-attest", "yes" if agent["can_reattest"] else "no"),
            ("SVID expires", until(agent["expires_at"])),
            ("SVID serial", agent["serial_number"]),
            ("Selectors", agent["selectors"]),
            ("Version", agent["agent_version"]),
        ]
    )
