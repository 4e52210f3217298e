"""The server's entries over the admin API: all of ours, whole or an error, and changes to them in batches."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from ca.controller.config import ServerConfig
from ca.controller.entry_wire import normal
from ca.errors import BurgeeError, Unavailable
from ca.ports import Clock
from ca.proto.spire import server_entry_pb2 as pb
from ca.proto.spire import server_entry_pb2_grpc, types_pb2
from ca.runtime.rpc import connect
from ca.runtime.rpc_errors import error_of
from ca.runtime.threads import to_thread
from ca.runtime.tls_relay import TlsRelay

PAGE = 2000
BATCH = 1000
CALL_SECONDS = 60.0
OK, NOT_FOUND, ALREADY_EXISTS = 0, 5, 6
_ID_ALONE = types_pb2.EntryMask()
"""What we sent we know."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry; `there` is the ID of the one that is there (for ALREADY_EXISTS, the other one's)."""

    code: int
    message: str = ""
    there: str = ""


class AdminChannel:
    """A channel to the server, opened when it is needed and anew after an error: so SVIDs are read again, too."""

    def __init__(self, config: ServerConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._relay: TlsRelay | None = None
        self._directory: Path | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[grpc.aio.Channel]:
        """RPC errors come out as the error family; after one that is no answer the channel is closed."""
        try:
            if self._channel is None:
                self._channel = await self._open()
            yield self._channel
        except grpc.aio.AioRpcError as error:
            found = self._explained(error_of(error))
            await self.close()
            raise found from error

    async def close(self) -> None:
        channel, relay, self._channel, self._relay = self._channel, self._relay, None, None
        if channel is not None:
            await channel.close()
        if relay is not None:
            await relay.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    async def _open(self) -> grpc.aio.Channel:
        if self._config.admin_socket is not None:
            return connect(self._config.admin_socket.absolute())
        from ca.cli.remote import directory_credentials

        assert self._config.address is not None
        assert self._config.svid_dir is not None
        mine = await to_thread(directory_credentials, self._config.svid_dir)

        self._directory = Path(tempfile.mkdtemp(prefix="burgee-"))
        self._relay = TlsRelay(
            servers=[self._config.address],
            verify=mine.verify_server,
            material=mine.material,
            directory=self._directory,
            clock=self._clock,
        )
        await self._relay.start()
        return connect(self._relay.path)

    def _explained(self, error: BurgeeError) -> BurgeeError:
        if self._relay is not None and self._relay.refusal is not None and isinstance(error, Unavailable):
            return self._relay.refusal.error
        return error


class EntryApi:
    """Entries whose ID `is_ours`. Raises what the server reported, and Unavailable where it cannot be asked."""

    def __init__(self, channel: AdminChannel, is_ours: Callable[[str], bool]) -> None:
        self._channel = channel
        self._is_ours = is_ours

    async def all(self) -> dict[str, types_pb2.Entry]:
        """All of ours in their normal form, by ID."""
        found: dict[str, types_pb2.Entry] = {}
        token = ""
        while True:
            request = pb.ListEntriesRequest(page_size=PAGE, page_token=token)
            async with self._stub() as stub:
                page = await stub.ListEntries(request, timeout=CALL_SECONDS)
            found.update((one.id, normal(one)) for one in page.entries if self._is_ours(one.id))
            token = page.next_page_token
            if not token:
                return found

    async def create(self, entries: Sequence[types_pb2.Entry]) -> list[Outcome]:
        async with self._stub() as stub:
            request = pb.BatchCreateEntryRequest(entries=entries, output_mask=_ID_ALONE)
            answer = await stub.BatchCreateEntry(request, timeout=CALL_SECONDS)
        return _outcomes(answer.results, len(entries))

    async def update(self, entries: Sequence[types_pb2.Entry]) -> list[Outcome]:
        async with self._stub() as stub:
            request = pb.BatchUpdateEntryRequest(entries=entries, output_mask=_ID_ALONE)
            answer = await stub.BatchUpdateEntry(request, timeout=CALL_SECONDS)
        return _outcomes(answer.results, len(entries))

    async def delete(self, ids: Sequence[str]) -> list[Outcome]:
        if not all(self._is_ours(one) for one in ids):
            raise ValueError("an entry of others is never deleted")
        async with self._stub() as stub:
            answer = await stub.BatchDeleteEntry(pb.BatchDeleteEntryRequest(ids=ids), timeout=CALL_SECONDS)
        return _outcomes(answer.results, len(ids))

    @asynccontextmanager
    async def _stub(self) -> AsyncIterator[server_entry_pb2_grpc.EntryAsyncStub]:
        async with self._channel.use() as channel:
            stub: Any = server_entry_pb2_grpc.EntryStub(channel)
            yield stub


def _outcomes(results: Sequence[Any], expected: int) -> list[Outcome]:
    if len(results) != expected:
        raise Unavailable("the server answered for another number of entries", reason="SERVER_ANSWER")
    return [
        Outcome(
            result.status.code,
            result.status.message,
            result.entry.id if hasattr(result, "entry") else result.id,
        )
        for result in results
    ]
