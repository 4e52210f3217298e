"""`caadmin ca`: the authorities that sign, their rotation, and what each step would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.ca_calls import STEP_SECONDS, Kind, KindArgument, status_value, step_value
from ca.cli.ca_rotate import rotate
from ca.cli.ca_status import blockers_table, status_table
from ca.cli.confirm import YesOption, confirm
from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.output import Output, OutputOption, emit, plain

if TYPE_CHECKING:
    import grpc

    from ca.proto.burgee import authority_pb2, authority_pb2_grpc

app = typer.Typer(help="The authorities that sign: what they are, how they are rotated, and whom that would cut off.")
app.command()(rotate)

SHOWN = 20


IdArgument = Annotated[str, typer.Argument(metavar="AUTHORITY_ID", help="As `caadmin ca status` shows it.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and whom it would cut off.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Also when it cuts somebody off; asks first.")]


@app.command()
def status(
    kind: Annotated[Kind | None, typer.Option(help="Only this kind.", show_default=False)] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Draw the life of every authority: published, acknowledged, active, unused; who is behind, and what comes next."""
    from ca.proto.burgee import authority_pb2

    request = authority_pb2.GetStatusRequest(
        kind=kind.value if kind else "", named=SHOWN if output is Output.TABLE else 1000
    )
    with channel(server_socket(socket)) as opened:
        data = status_value(_stub(opened).GetStatus(request, timeout=CALL_SECONDS))
    emit(data, output, lambda: status_table(data))


@app.command()
def prepare(
    kind: KindArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Make a new authority and publish it. It signs nothing yet; one that was prepared before it becomes old."""
    _run("Prepare", kind, "", dry_run=dry_run, force=False, yes=True, output=output, socket=socket)


@app.command()
def activate(
    kind: KindArgument,
    authority_id: IdArgument,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Have a prepared authority sign from now on. Refused while somebody who needs it has not got it."""
    _run("Activate", kind, authority_id, dry_run=dry_run, force=force, yes=yes, output=output, socket=socket)


@app.command()
def taint(
    kind: KindArgument,
    authority_id: IdArgument,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Have everything replaced within seconds that an old authority signed. Below an upstream name its root."""
    _run("Taint", kind, authority_id, dry_run=dry_run, force=False, yes=True, output=output, socket=socket)


@app.command()
def revoke(
    kind: KindArgument,
    authority_id: IdArgument,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Take a tainted authority out of the bundle. Refused while something in use hangs on it."""
    _run("Revoke", kind, authority_id, dry_run=dry_run, force=force, yes=yes, output=output, socket=socket)


@app.command()
def prune(
    kind: KindArgument,
    authority_id: IdArgument,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Take an old authority out of the bundle before its end. Refused while something in use hangs on it."""
    _run("Prune", kind, authority_id, dry_run=dry_run, force=force, yes=yes, output=output, socket=socket)


def _stub(opened: grpc.Channel) -> authority_pb2_grpc.AuthoritiesStub:
    from ca.proto.burgee import authority_pb2_grpc

    return authority_pb2_grpc.AuthoritiesStub(opened)


def _run(
    step: str,
    kind: Kind,
    authority_id: str,
    *,
    dry_run: bool,
    force: bool,
    yes: bool,
    output: Output,
    socket: Any,
) -> None:
    """One step. With `force` it is rehearsed first, so that whoever confirms knows what breaks."""
    from ca.proto.burgee import authority_pb2

    request = authority_pb2.StepRequest(kind=kind.value, authority_id=authority_id, dry_run=dry_run, force=force)
    with channel(server_socket(socket)) as opened:
        call = getattr(_stub(opened), step)
        if force and not dry_run:
            _confirm(step, call(_rehearsal(request), timeout=STEP_SECONDS), yes=yes)
        answer = call(request, timeout=STEP_SECONDS)
    data = step_value(step.lower(), answer)
    emit(data, output, lambda: _told(step.lower(), kind, data))


def _rehearsal(request: authority_pb2.StepRequest) -> authority_pb2.StepRequest:
    from ca.proto.burgee import authority_pb2

    return authority_pb2.StepRequest(kind=request.kind, authority_id=request.authority_id, dry_run=True)


def _confirm(step: str, rehearsed: authority_pb2.StepResponse, *, yes: bool) -> None:
    value = step_value(step.lower(), rehearsed)
    shown = blockers_table(value["cut_off"], value["cut_off_total"], SHOWN).splitlines()
    confirm([line.strip() for line in shown], yes=yes)


def _told(step: str, kind: Kind, data: dict[str, Any]) -> str:
    name = f"{kind} authority {plain(data['authority_id'])}".rstrip()
    if step == "prepare":
        return f"{name} prepared" if data["done"] else f"a new {kind} authority would be made and published"
    done = {"activate": "signs now", "taint": "tainted", "revoke": "revoked", "prune": "pruned"}[step]
    if data["done"]:
        head = f"{name} {done}"
        return f"{head}; cut off:\n{_cut_off(data)}" if data["cut_off_total"] else head
    if not data["cut_off_total"]:
        return f"{step} {name}: nobody would be cut off"
    return f"{step} {name}: refused without --force, for it would cut off {data['cut_off_total']}:\n{_cut_off(data)}"


def _cut_off(data: dict[str, Any]) -> str:
    return blockers_table(data["cut_off"], data["cut_off_total"], SHOWN)
