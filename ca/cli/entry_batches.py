"""Many entries in batches: sent, counted, and told about; what fails part-way does not hide what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ca.cli.connection import CALL_SECONDS, channel, server_socket
from ca.cli.exits import Exit, exit_of, exit_of_batch, show_error
from ca.cli.output import Output, emit, red
from ca.cli.progress import progress
from ca.cli.values import entry_value, id_text, status_value
from ca.errors import BurgeeError

if TYPE_CHECKING:
    import grpc

    from ca.proto.spire import server_entry_pb2_grpc, types_pb2

BATCH = 500
"""Entries of one call; a longer file is sent in several."""
SHOWN_WHOLE = 20
"""Up to so many entries are shown in full; of more, the failures and a summary."""

Call = Callable[["server_entry_pb2_grpc.EntryStub", list["types_pb2.Entry"]], Any]


@dataclass(kw_only=True)
class Sent:
    """What became of entries: a result for each that was answered, and the error that ended it early, if any."""

    done: str
    entries: Sequence[types_pb2.Entry]
    results: list[Any] = field(default_factory=list)
    error: BurgeeError | None = None
    lost: list[str] = field(default_factory=list)
    """Parents that nobody is, as far as that was looked for."""


def creating() -> Call:
    """BatchCreateEntry."""
    from ca.proto.spire import server_entry_pb2

    return lambda stub, some: stub.BatchCreateEntry(
        server_entry_pb2.BatchCreateEntryRequest(entries=some), timeout=CALL_SECONDS
    )


def updating(mask: types_pb2.EntryMask | None) -> Call:
    """BatchUpdateEntry of what the mask names, or of everything."""
    from ca.proto.spire import server_entry_pb2

    return lambda stub, some: stub.BatchUpdateEntry(
        server_entry_pb2.BatchUpdateEntryRequest(entries=some, input_mask=mask), timeout=CALL_SECONDS
    )


def send(
    entries: list[types_pb2.Entry],
    done: str,
    call: Call,
    socket: Path | None,
    *,
    after: Callable[[grpc.Channel, Sent], None] | None = None,
) -> Sent:
    """All of them, batch by batch, with a bar where that takes a while. Raises only when the first batch fails.

    `after` looks at what has been written, over the same connection.
    """
    from ca.proto.spire import server_entry_pb2_grpc

    sent = Sent(done=done, entries=entries)
    try:
        with (
            channel(server_socket(socket)) as opened,
            progress("entries", len(entries), least=2 * BATCH) as advance,
        ):
            stub = server_entry_pb2_grpc.EntryStub(opened)
            for some in batches(entries):
                sent.results += call(stub, some).results
                advance(len(sent.results))
            if after is not None:
                after(opened, sent)
    except BurgeeError as error:
        if not sent.results:
            raise
        sent.error = error
    return sent


def show_batch(sent: Sent, output: Output, details: Callable[[dict[str, Any]], str]) -> Exit:
    """Few entries whole, many as a summary, every failure with what it was about; returns the exit code."""
    shown: list[dict[str, Any]] = [
        {"status": status_value(result.status), "entry": entry_value(result.entry) if result.entry.id else None}
        for result in sent.results
    ]
    summary = _summary(sent)
    emit({"results": shown, "summary": summary}, output, lambda: "\n".join(_lines(sent, shown, summary, details)))
    if sent.error is not None:
        show_error(sent.error)
        return exit_of(sent.error.code)
    return exit_of_batch(result.status.code for result in sent.results)


def outcome(name: str, status: dict[str, Any], done: str) -> str:
    """One line for an item."""
    if status["code"] == "OK":
        return f"{name} {done}"
    return red(f"{name} not {done}: {status['message']} ({status['reason'] or status['code']})")


def batches(items: list[Any]) -> Iterator[list[Any]]:
    """Slices for one call each."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _summary(sent: Sent) -> dict[str, int]:
    good = sum(result.status.code == 0 for result in sent.results)
    return {
        sent.done: good,
        "failed": len(sent.results) - good,
        "not_sent": len(sent.entries) - len(sent.results),
        "total": len(sent.entries),
    }


def _lines(
    sent: Sent, shown: list[dict[str, Any]], summary: dict[str, int], details: Callable[[dict[str, Any]], str]
) -> Iterator[str]:
    if len(shown) <= SHOWN_WHOLE:
        good = [details(item["entry"]) for item in shown if item["status"]["code"] == "OK" and item["entry"]]
        if good:
            yield "\n\n".join(good)
    for number, (entry, item) in enumerate(zip(sent.entries, shown, strict=False), start=1):
        if item["status"]["code"] != "OK":
            name = entry.id or id_text(entry.spiffe_id)
            yield outcome(f"item {number} ({name})" if name else f"item {number}", item["status"], sent.done)
    if len(shown) > SHOWN_WHOLE or summary["not_sent"]:
        text = f"{summary[sent.done]} of {summary['total']} {sent.done}"
        text += f", {summary['failed']} failed" if summary["failed"] else ""
        yield text + (f", {summary['not_sent']} not sent" if summary["not_sent"] else "")
