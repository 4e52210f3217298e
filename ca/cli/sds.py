"""`caadmin agent sds`: each Envoy on this node, its secrets, and what it made of them in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ca.cli.connection import CALL_SECONDS, AgentSocketOption, agent_socket, channel
from ca.cli.output import Output, OutputOption, columns, emit, green, red, timestamp

if TYPE_CHECKING:
    from ca.proto.burgee import agent_pb2


def sds(output: OutputOption = Output.TABLE, agent_socket_path: AgentSocketOption = None) -> None:
    """Show the Envoys that an agent serves: stream, pid, secrets, version, and ACKED, NACKED, SENT or UNKNOWN."""
    from ca.proto.burgee import agent_pb2, agent_pb2_grpc

    with channel(agent_socket(agent_socket_path), who="agent") as opened:
        stub = agent_pb2_grpc.AgentStub(opened)
        listed = stub.ListSdsClients(agent_pb2.ListSdsClientsRequest(), timeout=CALL_SECONDS)
    clients = [_client(client) for client in listed.clients]
    emit({"clients": clients}, output, lambda: _table(clients))


def _client(client: agent_pb2.SdsClient) -> dict[str, Any]:
    return {
        "stream": client.stream,
        "pid": client.pid,
        "uid": client.uid,
        "node_id": client.node_id,
        "user_agent": client.user_agent,
        "connected_at": timestamp(client.connected_at),
        "resources": [
            {
                "name": resource.name,
                "state": resource.state,
                "version": resource.version,
                "sent_at": timestamp(resource.sent_at),
                "answered_at": timestamp(resource.answered_at),
                "detail": resource.detail,
            }
            for resource in client.resources
        ],
    }


def _table(clients: list[dict[str, Any]]) -> str:
    """A line per secret; what a NACK said, or what would make a name known, on a line below."""
    headers = ["STREAM", "PID", "UID", "NODE", "SECRET", "VERSION", "STATE", "SINCE"]
    rows, details = [], []
    for client in clients:
        for resource in client["resources"]:
            since = resource["answered_at"] or resource["sent_at"] or client["connected_at"]
            who = [client["stream"], client["pid"], client["uid"], client["node_id"]]
            rows.append([*who, resource["name"], resource["version"], resource["state"], since])
            if resource["detail"]:
                words = f"stream {client['stream']} `{resource['name']}` {resource['state']}: {resource['detail']}"
                details.append(red(words))
    table = columns(headers, rows, empty="no Envoy is connected")
    if rows and not details:
        details = [green("all secrets are accepted")] if all(row[6] == "ACKED" for row in rows) else []
    return "\n".join([table, *details])
