"""`caadmin audit`: who administered what, with which result."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import DURATION_HELP, instant_or_ago
from ca.cli.connection import SocketOption, channel, server_socket
from ca.cli.output import Output, OutputOption, columns, emit, plain, red
from ca.errors import InvalidArgument

if TYPE_CHECKING:
    from ca.proto.burgee import admin_pb2

STREAM_SECONDS = 600.0
_HEADERS = ["TIME", "ACTOR", "FROM", "CALL", "RESULT", "ITEMS"]
_WIDTHS = [24, 10, 12, 20, 20]
"""While following, columns cannot know what comes."""
_SHOWN_ITEMS = 3


def audit(
    since: Annotated[
        str, typer.Option(help=f"Only from then on: a time, or how long ago. {DURATION_HELP}", show_default=False)
    ] = "",
    actor: Annotated[str, typer.Option(help="Only by this one: uid:1000, or a SPIFFE ID.")] = "",
    call: Annotated[str, typer.Option(help="Only this call, such as BatchCreateEntry.")] = "",
    item: Annotated[str, typer.Option(help="Only about this: an entry's ID, a SPIFFE ID, a trust domain.")] = "",
    limit: Annotated[int, typer.Option(help="The newest so many; 0 for all.", min=0)] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on and show calls as they end.")] = False,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show administrative calls, oldest first: when, by whom, from where, which, with what result.

    Recorded are calls that change something, that mint, and that were denied; with `audit.reads` in the server's
    configuration also those that read. JSON with --follow: one object per line.
    """
    from ca.proto.burgee import admin_pb2, admin_pb2_grpc

    request = admin_pb2.ListAuditRequest(
        since=_since(since), actor=actor, call=call, item=item, limit=limit, follow=follow
    )
    with channel(server_socket(socket)) as opened:
        pages = admin_pb2_grpc.AdminStub(opened).ListAudit(request, timeout=None if follow else STREAM_SECONDS)
        found = (_value(record) for page in pages for record in page.records)
        if follow:
            _follow(found, output)
            return
        records = list(found)
    emit({"records": records}, output, lambda: columns(_HEADERS, map(_cells, records), empty="no calls"))
    if limit and len(records) == limit:
        print(f"these are the newest {limit}; --limit 0 shows all", file=sys.stderr)


def _since(text: str) -> int:
    """Unix seconds; 0 for no text."""
    if not text:
        return 0
    moment = instant_or_ago(text)
    if moment < 0:
        raise InvalidArgument(f"`{text}` is before 1970", reason="TIME")
    return moment


def _value(record: admin_pb2.AuditRecord) -> dict[str, Any]:
    at = datetime.fromtimestamp(record.at_micros / 1_000_000, UTC)
    return {
        "id": record.id,
        "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "actor": record.actor,
        "origin": record.origin,
        "call": record.call,
        "request_id": record.request_id,
        "server": record.server,
        "code": record.code,
        "reason": record.reason,
        "items": [{"name": item.name, "about": item.about, "code": item.code} for item in record.items],
    }


def _follow(records: Any, output: Output) -> None:
    if output is Output.TABLE:
        print("  ".join(header.ljust(width) for header, width in zip(_HEADERS, [*_WIDTHS, 0], strict=True)).rstrip())
    for record in records:
        if output is Output.TABLE:
            cells = [plain(cell).ljust(width) for cell, width in zip(_cells(record), [*_WIDTHS, 0], strict=True)]
            print("  ".join(cells).rstrip())
        elif output is Output.JSON:
            print(json.dumps(record))
        else:
            emit([record], output, str)
        sys.stdout.flush()


def _cells(record: dict[str, Any]) -> list[str]:
    result, fine = _result(record)
    shown = [_item(item) for item in record["items"][:_SHOWN_ITEMS]]
    more = len(record["items"]) - len(shown)
    if more:
        shown.append(f"and {more} more")
    return [
        record["at"],
        record["actor"],
        record["origin"],
        record["call"].rpartition("/")[2],
        result if fine else red(result),
        "; ".join(shown) or "-",
    ]


def _result(record: dict[str, Any]) -> tuple[str, bool]:
    """What became of it, and whether that is fine. A batch goes well as a call while its items fail: then it is theirs
    that count, where it is the same for all of them, and else how many failed."""
    items = record["items"]
    failed = [item["code"] for item in items if item["code"] not in ("", "OK")]
    if record["code"] != "OK" or not failed:
        return f"{record['code']} ({record['reason']})" if record["reason"] else record["code"], record["code"] == "OK"
    if len(failed) == len(items) and len(set(failed)) == 1:
        return failed[0], False
    return f"{len(failed)} of {len(items)} failed", False


def _item(item: dict[str, Any]) -> str:
    text = " ".join(part for part in (item["name"], item["about"]) if part)
    return text if item["code"] in ("", "OK") else f"{text} {item['code']}"
