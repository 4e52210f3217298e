"""Many Envoy-like clients in one process: `python -m tests.support.policy_crowd SOCKET ID…`.

Each has a connection and an incremental stream of its own for one SPIFFE ID, and accepts all it is sent.
"""

from __future__ import annotations

import asyncio
import sys

from envoy.config.core.v3 import base_pb2

from tests.support.workload_client import WorkloadClient


async def follow(socket_path: str, spiffe_id: str) -> None:
    async with WorkloadClient(socket_path) as client:
        stream = client.policies()
        await stream.ask(f"burgee.http.policy/{spiffe_id}", node=base_pb2.Node(id=spiffe_id))
        while True:
            await stream.read()
            await stream.ack()


async def main(socket_path: str, ids: list[str]) -> None:
    await asyncio.gather(*(follow(socket_path, spiffe_id) for spiffe_id in ids))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
