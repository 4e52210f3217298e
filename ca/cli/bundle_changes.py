"""`caadmin bundle set` and `delete`: whose word is believed, and whose no longer."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ca.cli.bundle_calls import bundle_stub, complete, held_bundle
from ca.cli.bundle_values import describe, details, from_wire, lost, read_bundle
from ca.cli.confirm import YesOption, confirm
from ca.cli.connection import CALL_SECONDS, SocketOption, channel, server_socket
from ca.cli.entry_batches import outcome
from ca.cli.exits import exit_of_batch, leave
from ca.cli.output import Output, OutputOption, emit
from ca.cli.values import status_value
from ca.errors import STATUS, Code
from ca.identity.spiffe_id import TrustDomain

if TYPE_CHECKING:
    import grpc

_IN_USE = STATUS[Code.FAILED_PRECONDITION][0]


class FileFormat(StrEnum):
    """Shapes of a bundle that can be read."""

    PEM = "pem"
    SPIFFE = "spiffe"


class Mode(StrEnum):
    """What becomes of entries that federate with a trust domain whose bundle goes."""

    RESTRICT = "restrict"
    DELETE = "delete"
    DISSOCIATE = "dissociate"


def set_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="PEM certificates, or a SPIFFE bundle; - for standard input.")
    ],
    trust_domain: Annotated[str, typer.Option("--trust-domain", help="Whose bundle it is.", autocompletion=complete)],
    format_: Annotated[
        FileFormat | None,
        typer.Option("--format", help="The file's format; told by its beginning otherwise.", show_default=False),
    ] = None,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Store the bundle of another trust domain, in place of the one that is there.

    Entries that federate with it have it pushed at once. Asks first when keys would go that are still valid.
    """
    from ca.api.convert.bundles import bundle_message
    from ca.proto.spire import server_bundle_pb2

    domain = TrustDomain.parse(trust_domain)
    wanted = read_bundle(file, domain, pem=None if format_ is None else format_ is FileFormat.PEM)
    with channel(server_socket(socket)) as opened:
        before = held_bundle(bundle_stub(opened), domain)
        confirm(lost(before, wanted, datetime.now(UTC)) if before else (), yes=yes)
        request = server_bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle_message(wanted)])
        [result] = bundle_stub(opened).BatchSetFederatedBundle(request, timeout=CALL_SECONDS).results
    done = result.status.code == 0
    shown = describe(from_wire(result.bundle)) if done else None
    status = status_value(result.status)
    emit(
        {"status": status, "bundle": shown},
        output,
        lambda: details(shown) if shown else outcome(domain.name, status, "set"),
    )
    leave(exit_of_batch([result.status.code]))


def delete(
    trust_domain: Annotated[
        str,
        typer.Argument(metavar="TRUST_DOMAIN", help="Its name, or `spiffe://` and its name.", autocompletion=complete),
    ],
    mode: Annotated[
        Mode,
        typer.Option(
            help="What becomes of entries that federate with it: restrict refuses while there are some, delete "
            "deletes them too, dissociate keeps them without it."
        ),
    ] = Mode.RESTRICT,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Delete the bundle of another trust domain: its workloads are no longer believed. Asks first."""
    from ca.proto.spire import server_bundle_pb2

    domain = TrustDomain.parse(trust_domain)
    request = server_bundle_pb2.BatchDeleteFederatedBundleRequest(
        trust_domains=[domain.name], mode=server_bundle_pb2.BatchDeleteFederatedBundleRequest.Mode.Value(mode.name)
    )
    with channel(server_socket(socket)) as opened:
        if not yes and held_bundle(bundle_stub(opened), domain):
            confirm(_consequences(opened, domain, mode), yes=yes)
        [result] = bundle_stub(opened).BatchDeleteFederatedBundle(request, timeout=CALL_SECONDS).results
    status = status_value(result.status)
    emit({"trust_domain": domain.name, "status": status}, output, lambda: outcome(domain.name, status, "deleted"))
    if result.status.code == _IN_USE:
        print("hint: --mode dissociate keeps these entries without it, --mode delete deletes them", file=sys.stderr)
    leave(exit_of_batch([result.status.code]))


def _consequences(opened: grpc.Channel, domain: TrustDomain, mode: Mode) -> list[str]:
    """What goes with the bundle, in words; nothing where the server will refuse anyway."""
    from ca.proto.spire import server_entry_pb2, server_entry_pb2_grpc

    request = server_entry_pb2.CountEntriesRequest()
    request.filter.by_federates_with.trust_domains.append(domain.name)
    request.filter.by_federates_with.match = request.filter.by_federates_with.MATCH_SUPERSET
    count = server_entry_pb2_grpc.EntryStub(opened).CountEntries(request, timeout=CALL_SECONDS).count
    if count and mode is Mode.RESTRICT:
        return []
    words = [f"the bundle of {domain}: what its workloads show is not accepted any more"]
    if count:
        gone = "entries that federate with it" if mode is Mode.DELETE else "entries' federation with it"
        words.append(f"{count} {gone}")
    return words
