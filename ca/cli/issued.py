"""`caadmin issued`: who got which identity, by the record that is written before anything is signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.connection import SocketOption, channel, server_socket
from ca.cli.output import Output, OutputOption, columns, emit, timestamp, until

if TYPE_CHECKING:
    from ca.proto.burgee import admin_pb2

STREAM_SECONDS = 600.0


def issued(
    spiffe_id: Annotated[str, typer.Option("--spiffe-id", help="Only for this SPIFFE ID.")] = "",
    agent: Annotated[
        str,
        typer.Option(
            help="Only what this agent asked for, or its own; its SPIFFE ID. Or whose token was exchanged, such as "
            "`oidc:forge:repo:acme/shop`, or a pod: `k8s_pod:demo:shop/web-1@node-7`."
        ),
    ] = "",
    authority: Annotated[
        str, typer.Option(help="Only by this authority: a certificate's authority ID, or a token's key ID.")
    ] = "",
    live: Annotated[bool, typer.Option("--live", help="Only what is valid now.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many, the newest; 0 for all.", min=0)] = 1000,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show what was issued, newest first: certificates, tokens and authorities, with who asked and until when.

    Records are kept for a while after what they tell of has expired (`prune.issuance_retention_seconds`).
    """
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    request = admin_pb2.ListIssuedRequest(
        spiffe_id=spiffe_id, agent_id=agent, authority_id=authority, live=live, limit=limit
    )
    with channel(server_socket(socket)) as opened:
        pages = admin_pb2_grpc.AdminStub(opened).ListIssued(request, timeout=STREAM_SECONDS)
        records = [_value(record) for page in pages for record in page.records]
    emit({"records": records}, output, lambda: _table(records))


def _value(record: admin_pb2.Issued) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "serial_or_kid": record.serial_or_kid,
        "spiffe_id": record.spiffe_id,
        "entry_id": record.entry_id,
        "entry_revision": record.entry_revision,
        "agent_id": record.agent_id,
        "requester": record.requester,
        "authority_id": record.authority_id,
        "server": record.server,
        "not_before": timestamp(record.not_before),
        "not_after": timestamp(record.not_after),
        "key_sha256": record.key_sha256.hex(),
    }


def _table(records: list[dict[str, Any]]) -> str:
    headers = [
        "KIND",
        "SERIAL OR KEY ID",
        "SPIFFE ID",
        "ENTRY",
        "AGENT OR REQUESTER",
        "AUTHORITY",
        "NOT BEFORE",
        "NOT AFTER",
        "KEY SHA-256",
    ]
    rows = (
        [
            record["kind"],
            record["serial_or_kid"],
            record["spiffe_id"],
            f"{record['entry_id']} rev {record['entry_revision']}" if record["entry_id"] else "-",
            record["agent_id"] or record["requester"] or "-",
            record["authority_id"],
            record["not_before"],
            until(record["not_after"]),
            record["key_sha256"] or "-",
        ]
        for record in records
    )
    return columns(headers, rows, empty="nothing issued")
