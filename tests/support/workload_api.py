"""A Workload API that gives what a test tells it to: one X.509-SVID, or none. No process is attested."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.proto.burgee import workload_pb2 as pb
from tests.support.server import Identity


class WorkloadApi:
    """`give` answers every stream, those that are open too; before the first one callers are told PermissionDenied."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.streams = 0
        self._answer: pb.X509SVIDResponse | None = None
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def give(self, *identities: Identity, roots: Sequence[bytes], trust_domain: str = "example.org") -> None:
        svids = [
            pb.X509SVID(
                spiffe_id=f"spiffe://{trust_domain}{identity.path}",
                x509_svid=b"".join(identity.chain),
                x509_svid_key=identity.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                bundle=b"".join(roots),
            )
            for identity in identities
        ]
        await self._set(pb.X509SVIDResponse(svids=svids))

    async def take_back(self) -> None:
        await self._set(None)

    async def _set(self, answer: pb.X509SVIDResponse | None) -> None:
        async with self._changed:
            self._answer = answer
            self._changed.notify_all()

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(
            self._fetch,
            request_deserializer=pb.X509SVIDRequest.FromString,
            response_serializer=pb.X509SVIDResponse.SerializeToString,
        )
        handlers = {"FetchX509SVID": handler}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", handlers),))
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await self._server.stop(0)

    async def _fetch(self, request: Any, context: Any) -> AsyncIterator[pb.X509SVIDResponse]:
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        self.streams += 1
        while True:
            async with self._changed:
                answer = self._answer
                if answer is None:
                    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
                    return
                yield answer
                await self._changed.wait_for(lambda answer=answer: self._answer is not answer)
