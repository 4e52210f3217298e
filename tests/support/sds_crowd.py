"""Many Envoy-like clients in one process: `python -m tests.support.sds_crowd SOCKET COUNT`.

Each has a connection and a stream of its own for `default`, every other one in delta, and accepts all it is sent. When
all hold one and the same certificate, a line of JSON says since when: `{"first": …, "last": …}`, seconds since 1970.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf import any_pb2

from tests.support.workload_client import WorkloadClient


class Crowd:
    """Who holds which certificate chain, and since when."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: dict[int, tuple[bytes, float]] = {}
        self._told = b""

    def took(self, number: int, resource: any_pb2.Any) -> None:
        secret = secret_pb2.Secret.FromString(resource.value)
        chain: bytes = secret.tls_certificate.certificate_chain.inline_bytes
        self._held[number] = (chain, time.time())
        chains = {chain for chain, _ in self._held.values()}
        if len(self._held) == self._count and len(chains) == 1 and chain != self._told:
            self._told = chain
            times = [since for _, since in self._held.values()]
            print(json.dumps({"first": min(times), "last": max(times)}), flush=True)


async def follow(crowd: Crowd, socket_path: str, number: int) -> None:
    async with WorkloadClient(socket_path) as client:
        if number % 2:
            delta = client.delta()
            await delta.ask("default")
            while True:
                for resource in (await delta.read()).resources:
                    crowd.took(number, resource.resource)
                await delta.ack()
        else:
            whole = client.sds()
            await whole.ask("default")
            while True:
                for any_resource in (await whole.read()).resources:
                    crowd.took(number, any_resource)
                await whole.ack("default")


async def main(socket_path: str, count: int) -> None:
    crowd = Crowd(count)
    await asyncio.gather(*(follow(crowd, socket_path, number) for number in range(count)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
