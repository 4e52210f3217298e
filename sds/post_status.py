"""Telling the server once after a start which version of the agent runs here."""

from __future__ import annotations

import grpc

from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc
from ca.runtime.log import get

CALL_SECONDS = 30.0
MAX_VERSION_CHARACTERS = 255
"""The server's own limit."""

AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
log = get("sds.sync")


async def post_status(channel: grpc.aio.Channel, version: str) -> bool:
    """False when no server answered, so that it should be told later. A refusal is logged: nothing depends on it."""
    request = server_agent_pb2.PostStatusRequest(agent_version=version[:MAX_VERSION_CHARACTERS])
    try:
        await server_agent_pb2_grpc.AgentStub(channel).PostStatus(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() in AGAIN:
            return False
        log.info("the server did not take the agent's version", detail=error.details())
    return True
