"""`caadmin entry`: which selectors under which parent earn which SPIFFE ID."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli import entry_options as opt
from ca.cli.arguments import DURATION_HELP
from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.entry_batches import Sent, batches, creating, outcome, send, show_batch, updating
from ca.cli.entry_files import read_entries
from ca.cli.entry_parents import note_lost, warn_lost
from ca.cli.entry_warnings import findings, warn
from ca.cli.exits import Exit, exit_of_batch, leave
from ca.cli.output import Output, OutputOption, columns, emit, fields, plain, span, until
from ca.cli.values import entry_value, status_value
from ca.errors import InvalidArgument

if TYPE_CHECKING:
    import grpc

    from ca.proto.spire import server_entry_pb2_grpc, types_pb2

app = typer.Typer(help="Registration entries: which selectors under which parent earn which SPIFFE ID.")

PAGE = 500


@app.command()
def create(
    spiffe_id: opt.SpiffeIdOption = None,
    parent_id: opt.ParentIdOption = None,
    node: Annotated[
        bool, typer.Option("--node", help="An alias for nodes: the parent is the server, the selectors are a node's.")
    ] = False,
    selector: opt.SelectorOption = None,
    x509_svid_ttl: Annotated[str, typer.Option(help=f"Life of X.509-SVIDs. {DURATION_HELP}")] = "0",
    jwt_svid_ttl: Annotated[str, typer.Option(help=f"Life of JWT-SVIDs. {DURATION_HELP}")] = "0",
    dns_name: opt.DnsNameOption = None,
    federates_with: opt.FederatesWithOption = None,
    hint: Annotated[str, typer.Option(help="A word by which a workload tells its SVIDs apart.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="Holders may administer the server.")] = False,
    downstream: Annotated[bool, typer.Option("--downstream", help="Holders may be a downstream authority.")] = False,
    store_svid: Annotated[bool, typer.Option("--store-svid", help="For SVIDs that are stored elsewhere.")] = False,
    expires_at: Annotated[str, typer.Option(help="When the entry ends: RFC 3339 or Unix seconds.")] = "0",
    entry_id: Annotated[str, typer.Option("--id", help="The entry's ID; the server makes one otherwise.")] = "",
    file: opt.FileOption = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Create an entry, or with --file every entry of a file.

    Example: caadmin entry create --parent-id spiffe://example.org/spire/agent/join_token/T
    --spiffe-id spiffe://example.org/web --selector unix:uid:1000
    """
    if file is not None:
        entries = opt.from_file(file, spiffe_id, parent_id, selector)
    else:
        changes = opt.Changes(
            spiffe_id=spiffe_id,
            parent_id=opt.parent(spiffe_id, parent_id, node=node),
            selectors=selector,
            x509_svid_ttl=x509_svid_ttl,
            jwt_svid_ttl=jwt_svid_ttl,
            dns_names=dns_name,
            federates_with=federates_with,
            hint=hint,
            admin=admin,
            downstream=downstream,
            store_svid=store_svid,
            expires_at=expires_at,
        )
        entries = [opt.new_entry(changes, entry_id)]
    _finish(send(entries, "created", creating(), socket, after=note_lost), output)


@app.command("list")
def list_(
    spiffe_id: opt.SpiffeIdOption = None,
    parent_id: opt.ParentIdOption = None,
    selector: opt.SelectorOption = None,
    match_selectors: opt.MatchOption = opt.Match.SUPERSET,
    federates_with: opt.FederatesWithOption = None,
    hint: opt.HintFilter = None,
    downstream: opt.DownstreamFilter = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """List entries, all of them or those that match every given filter."""
    entry_filter = opt.Filter(spiffe_id, parent_id, selector, match_selectors, federates_with, hint, downstream)
    with channel(server_socket(socket)) as opened:
        entries = [entry_value(entry) for entry in _pages(_stub(opened), entry_filter)]
    emit({"entries": entries}, output, lambda: _table(entries))


@app.command()
def show(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="The entry's ID.")],
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show one entry."""
    from ca.proto.spire import server_entry_pb2

    with channel(server_socket(socket)) as opened:
        entry = _stub(opened).GetEntry(server_entry_pb2.GetEntryRequest(id=entry_id), timeout=CALL_SECONDS)
    value = entry_value(entry)
    emit(value, output, lambda: _details(value))


@app.command()
def update(
    entry_id: Annotated[str | None, typer.Argument(metavar="ID", help="The entry's ID.", show_default=False)] = None,
    spiffe_id: opt.SpiffeIdOption = None,
    parent_id: opt.ParentIdOption = None,
    selector: opt.SelectorOption = None,
    x509_svid_ttl: Annotated[str | None, typer.Option(help=f"Life of X.509-SVIDs. {DURATION_HELP}")] = None,
    jwt_svid_ttl: Annotated[str | None, typer.Option(help=f"Life of JWT-SVIDs. {DURATION_HELP}")] = None,
    dns_name: opt.DnsNameOption = None,
    federates_with: opt.FederatesWithOption = None,
    hint: Annotated[str | None, typer.Option(help="A word by which a workload tells its SVIDs apart.")] = None,
    admin: Annotated[bool | None, typer.Option("--admin/--no-admin", help="May holders administer?")] = None,
    downstream: Annotated[
        bool | None, typer.Option("--downstream/--no-downstream", help="May holders be an authority?")
    ] = None,
    store_svid: Annotated[bool | None, typer.Option("--store-svid/--no-store-svid", help="Stored elsewhere?")] = None,
    expires_at: Annotated[str | None, typer.Option(help="When the entry ends; 0 for never.")] = None,
    file: opt.FileOption = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Change what is given and leave the rest; with --file replace each entry of a file, which names its ID.

    A list option (--selector, --dns-name, --federates-with) replaces the whole list; "" empties it.
    """
    if file is not None:
        if entry_id is not None:
            raise InvalidArgument("an ID and --file exclude each other", reason="USAGE")
        entries = opt.from_file(file, spiffe_id, parent_id, selector)
        _finish(send(entries, "updated", updating(None), socket), output)
        return
    changes = opt.Changes(
        spiffe_id=spiffe_id,
        parent_id=parent_id,
        selectors=selector,
        x509_svid_ttl=x509_svid_ttl,
        jwt_svid_ttl=jwt_svid_ttl,
        dns_names=dns_name,
        federates_with=federates_with,
        hint=hint,
        admin=admin,
        downstream=downstream,
        store_svid=store_svid,
        expires_at=expires_at,
    )
    entry, mask = opt.changed_entry(changes, entry_id)
    _finish(send([entry], "updated", updating(mask), socket), output)


@app.command()
def delete(
    entry_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The entries' IDs.")],
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Delete entries. Every ID is tried; one that fails makes the exit code non-zero."""
    from ca.proto.spire import server_entry_pb2

    results: list[Any] = []
    with channel(server_socket(socket)) as opened:
        for some in batches(entry_ids):
            request = server_entry_pb2.BatchDeleteEntryRequest(ids=some)
            results += _stub(opened).BatchDeleteEntry(request, timeout=CALL_SECONDS).results
    shown = [{"id": result.id, "status": status_value(result.status)} for result in results]
    emit({"results": shown}, output, lambda: "\n".join(outcome(r["id"], r["status"], "deleted") for r in shown))
    leave(exit_of_batch(result.status.code for result in results))


@app.command()
def count(
    spiffe_id: opt.SpiffeIdOption = None,
    parent_id: opt.ParentIdOption = None,
    selector: opt.SelectorOption = None,
    match_selectors: opt.MatchOption = opt.Match.SUPERSET,
    federates_with: opt.FederatesWithOption = None,
    hint: opt.HintFilter = None,
    downstream: opt.DownstreamFilter = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Count entries, all of them or those that match every given filter."""
    from ca.proto.spire import server_entry_pb2

    entry_filter = opt.Filter(spiffe_id, parent_id, selector, match_selectors, federates_with, hint, downstream)
    request = server_entry_pb2.CountEntriesRequest()
    entry_filter.fill(request.filter)
    with channel(server_socket(socket)) as opened:
        number = _stub(opened).CountEntries(request, timeout=CALL_SECONDS).count
    emit({"count": number}, output, lambda: str(number))


@app.command()
def lint(file: opt.FileOption = None, output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Find entries that are for more than was meant: for everybody with a token of an issuer, or for a program whoever
    runs it. Exits with 1 on findings.

    Without --file, what the server has is looked at; `caadmin doctor server` says what of it nothing can match.
    """
    if file is not None:
        entries = read_entries(file)
    else:
        with channel(server_socket(socket)) as opened:
            entries = list(_pages(_stub(opened), opt.NO_FILTER))
    found = findings(entries)
    emit({"entries": len(entries), "findings": found}, output, lambda: _linted(len(entries), found))
    leave(Exit.FAILED if found else Exit.OK)


def _finish(sent: Sent, output: Output) -> None:
    """Show what became of the entries, say what of it is seldom meant, and leave."""
    code = show_batch(sent, output, _details)
    warn(sent)
    warn_lost(sent)
    leave(code)


def _stub(opened: grpc.Channel) -> server_entry_pb2_grpc.EntryStub:
    from ca.proto.spire import server_entry_pb2_grpc

    return server_entry_pb2_grpc.EntryStub(opened)


def _pages(stub: server_entry_pb2_grpc.EntryStub, entry_filter: opt.Filter) -> Iterator[types_pb2.Entry]:
    from ca.proto.spire import server_entry_pb2

    request = server_entry_pb2.ListEntriesRequest(page_size=PAGE)
    entry_filter.fill(request.filter)
    while True:
        page = stub.ListEntries(request, timeout=CALL_SECONDS)
        yield from page.entries
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _table(entries: list[dict[str, Any]]) -> str:
    headers = ["ID", "SPIFFE ID", "PARENT ID", "SELECTORS", "X509 TTL", "HINT"]
    rows = (
        [
            *(entry[key] for key in ("id", "spiffe_id", "parent_id")),
            ",".join(entry["selectors"]),
            entry["x509_svid_ttl_seconds"] or "default",
            entry["hint"],
        ]
        for entry in entries
    )
    return columns(headers, rows, empty="no entries")


def _linted(number: int, found: list[dict[str, Any]]) -> str:
    if not found:
        return f"{number} {'entry' if number == 1 else 'entries'}, and each is for whom it names"
    return "\n".join(
        f"entry {plain(one['entry_id'] or '-')} ({plain(one['spiffe_id'])}) {plain(one['detail'])} ({one['reason']})\n"
        f"  hint: {one['hint']}"
        for one in found
    )


def _details(entry: dict[str, Any]) -> str:
    flags = [name for name in ("admin", "downstream", "store_svid") if entry[name]]
    return fields(
        [
            ("Entry ID", entry["id"]),
            ("SPIFFE ID", entry["spiffe_id"]),
            ("Parent ID", entry["parent_id"]),
            ("Selectors", entry["selectors"]),
            ("X509-SVID TTL", _ttl(entry["x509_svid_ttl_seconds"])),
            ("JWT-SVID TTL", _ttl(entry["jwt_svid_ttl_seconds"])),
            ("Federates with", entry["federates_with"]),
            ("DNS names", entry["dns_names"]),
            ("Hint", entry["hint"]),
            ("Flags", ", ".join(flags)),
            ("Expires", until(entry["expires_at"]) if entry["expires_at"] else None),
            ("Revision", entry["revision_number"]),
            ("Created", entry["created_at"]),
        ]
    )


def _ttl(seconds: int) -> str:
    return span(seconds) if seconds else "default"
