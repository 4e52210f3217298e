"""Entries whose parent nobody is: they are written, for a node may come later, and served to none until then."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ca.cli.connection import CALL_SECONDS
from ca.cli.entry_batches import Sent
from ca.cli.output import plain
from ca.cli.values import id_text
from ca.identity import exchange
from ca.identity.spiffe_id import SERVER_PATH

if TYPE_CHECKING:
    import grpc

    from ca.proto.spire import types_pb2

LOOKED_AT = 20
"""Of more parents than that the rest is not looked for."""
UNKNOWN_REASON = "ENTRY_PARENT_UNKNOWN"


def note_lost(opened: grpc.Channel, sent: Sent) -> None:
    """Put the parents of what was written that no agent and no entry is into `sent.lost`."""
    import grpc

    written = [entry for entry, result in zip(sent.entries, sent.results, strict=False) if result.status.code == 0]
    parents = {id_text(entry.parent_id): entry.parent_id for entry in written}
    for text, parent in list(parents.items())[:LOOKED_AT]:
        if parent.path == SERVER_PATH or exchange.is_parent_path(parent.path):
            continue
        try:
            if not _is_entry(opened, parent) and not _is_agent(opened, parent):
                sent.lost.append(text)
        except grpc.RpcError:
            return  # the entries are written, and nothing is to be said of what could not be looked for


def warn_lost(sent: Sent) -> None:
    for text in sent.lost:
        said = f"`{text}` is the parent of an entry, and no agent and no entry is it"
        print(f"warning: {plain(said)} ({UNKNOWN_REASON})", file=sys.stderr)
    if sent.lost:
        hint = "nobody is served it until one is: `caadmin agent list` shows agents, `caadmin entry update` mends it"
        print(f"hint: {hint}", file=sys.stderr)


def _is_entry(opened: grpc.Channel, spiffe_id: types_pb2.SPIFFEID) -> bool:
    from ca.proto.spire import server_entry_pb2, server_entry_pb2_grpc

    request = server_entry_pb2.CountEntriesRequest()
    request.filter.by_spiffe_id.CopyFrom(spiffe_id)
    return server_entry_pb2_grpc.EntryStub(opened).CountEntries(request, timeout=CALL_SECONDS).count > 0


def _is_agent(opened: grpc.Channel, spiffe_id: types_pb2.SPIFFEID) -> bool:
    import grpc

    from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc

    try:
        request = server_agent_pb2.GetAgentRequest(id=spiffe_id)
        server_agent_pb2_grpc.AgentStub(opened).GetAgent(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):  # the latter: no agent's path
            return False
        raise
    return True
