"""`caadmin ttl explain`, `caadmin outage-budget` and `caadmin upstream check`: what will run out, for whom, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.exits import Exit, leave
from ca.cli.output import Output, OutputOption, bold, emit, green, plain, red, span, timestamp, until

if TYPE_CHECKING:
    from ca.proto.burgee import foresight_pb2

CHECK_SECONDS = 90.0
_WHO = {"server": "first", "authority": "authority"}

ttl = typer.Typer(help="How long SVIDs live.")
upstream = typer.Typer(help="The authority above this server's.")


@ttl.callback()
def _ttl() -> None:
    """How long SVIDs live."""


@upstream.callback()
def _upstream() -> None:
    """The authority above this server's."""


@ttl.command("explain")
def explain(
    spiffe_id: Annotated[str, typer.Argument(metavar="SPIFFE_ID", help="Of a workload, an agent or the server.")],
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Say how long an identity's SVIDs live: asked, granted, cut short by what, and how to mend it."""
    from ca.proto.burgee import foresight_pb2, foresight_pb2_grpc

    with channel(server_socket(socket)) as opened:
        request = foresight_pb2.ExplainTtlRequest(spiffe_id=spiffe_id)
        answer = foresight_pb2_grpc.ForesightStub(opened).ExplainTtl(request, timeout=CALL_SECONDS)
    ttls = [_ttl_value(one) for one in answer.ttls]
    emit({"spiffe_id": spiffe_id, "ttls": ttls}, output, lambda: "\n".join(map(_ttl_lines, ttls)))


def outage_budget(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Say who would fail first, and when, if the server stopped now, or if it got no further authority."""
    from ca.proto.burgee import foresight_pb2, foresight_pb2_grpc

    with channel(server_socket(socket)) as opened:
        request = foresight_pb2.GetOutageBudgetRequest()
        answer = foresight_pb2_grpc.ForesightStub(opened).GetOutageBudget(request, timeout=CALL_SECONDS)
    data = {
        "at": timestamp(answer.now),
        "server": [_loss_value(one) for one in answer.server],
        "authority": [_loss_value(one) for one in answer.authority],
    }
    emit(data, output, lambda: _budget_table(data))


@upstream.command("check")
def check(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Rehearse all that the server needs of its upstream authority: log-in, chain, limits, a signature. Exits with 1
    when something fails."""
    from ca.proto.burgee import foresight_pb2, foresight_pb2_grpc

    with channel(server_socket(socket)) as opened:
        stub = foresight_pb2_grpc.ForesightStub(opened)
        answer = stub.CheckUpstream(foresight_pb2.CheckUpstreamRequest(), timeout=CHECK_SECONDS)
    findings = [{"what": f.what, "level": f.level, "detail": f.detail, "hint": f.hint} for f in answer.findings]
    data = {"configured": answer.configured, "plugin": answer.plugin, "findings": findings}
    emit(data, output, lambda: _findings_table(data))
    leave(Exit.FAILED if any(one["level"] == "failed" for one in findings) else Exit.OK)


def _ttl_value(one: foresight_pb2.Ttl) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "entry_id": one.entry_id,
        "asked_seconds": one.asked_seconds,
        "asked_by": one.asked_by,
        "granted_seconds": one.granted_seconds,
        "caps": [{"reason": c.reason, "detail": c.detail, "not_after": timestamp(c.not_after)} for c in one.caps],
        "cut_from": timestamp(one.cut_from),
        "advice": one.advice,
        "alive": one.alive,
        "first_not_after": timestamp(one.first_not_after),
    }


def _ttl_lines(one: dict[str, Any]) -> str:
    by = f"entry {one['entry_id']}" if one["asked_by"] == "entry" else one["asked_by"]
    name = "X.509-SVID" if one["kind"] == "x509" else "JWT-SVID"
    lines = [f"{name}: asked {span(one['asked_seconds'])} ({plain(by)}), granted {span(one['granted_seconds'])}"]
    lines += [f"  cut short: {plain(c['detail'])} {until(c['not_after'])} ({plain(c['reason'])})" for c in one["caps"]]
    if one["cut_from"] and not one["caps"]:
        lines.append(f"  will be cut short from {until(one['cut_from'])} on, until another authority signs")
    if one["advice"]:
        lines.append(f"  to mend it: {plain(one['advice'])}")
    if one["alive"]:
        lines.append(f"  in use: {one['alive']}, the first ends {until(one['first_not_after'])}")
    return "\n".join(lines)


def _loss_value(one: foresight_pb2.Loss) -> dict[str, Any]:
    return {
        "what": one.what,
        "at": timestamp(one.at),
        "who": one.who,
        "count": one.count,
        "half_at": timestamp(one.half_at),
        "last_at": timestamp(one.last_at),
    }


def _budget_table(data: dict[str, Any]) -> str:
    parts = []
    for key, title in {"server": "if the server stopped now:", "authority": "if it got no further authority:"}.items():
        width = max((len(until(one["at"])) for one in data[key]), default=0)
        lines = [line for one in data[key] for line in _loss_lines(one, width, _WHO[key])]
        parts.append("\n".join([bold(title), *(lines or ["  nothing fails"])]))
    return "\n\n".join(parts)


def _loss_lines(one: dict[str, Any], width: int, label: str) -> list[str]:
    """When and what; below it who is first, and when the others follow. IDs are long, so each has a line."""
    lines = [f"  {until(one['at']).ljust(width)}  {plain(one['what'])}"]
    if one["who"]:
        lines.append(f"    {label}: {plain(one['who'])}")
    if one["count"] > 1:
        lines.append(f"    half of {one['count']}: {until(one['half_at'])}; all: {until(one['last_at'])}")
    return lines


def _findings_table(data: dict[str, Any]) -> str:
    if not data["configured"]:
        return "no upstream authority is configured: this server signs its own roots"
    marks = {"ok": green("ok"), "warning": red("warning"), "failed": red("failed")}
    lines = [f"upstream {plain(data['plugin'])}"]
    for one in data["findings"]:
        lines.append(f"  {marks[one['level']]}  {plain(one['what'])}: {plain(one['detail'])}")
        if one["hint"]:
            lines.append(f"      hint: {plain(one['hint'])}")
    return "\n".join(lines)
