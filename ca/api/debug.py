"""spire.api.server.debug.v1.Debug: what the server tells of itself, on the local socket alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from cryptography.x509.oid import NameOID

from ca.api.convert.ids import id_message, seconds
from ca.identity.certificate import load_authority, load_certificate
from ca.identity.spiffe_id import server_id
from ca.ports import Clock
from ca.proto.spire import server_debug_pb2 as pb
from ca.proto.spire import server_debug_pb2_grpc
from ca.service.peers import AgentTable
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex

Context = grpc.aio.ServicerContext[Any, Any]
_NAMES = {NameOID.SERIAL_NUMBER: "SERIALNUMBER"}


class DebugService(server_debug_pb2_grpc.DebugServicer):
    """Counts are memory's. `chain` gives the server's own chain and the authority that it ends in, DER, leaf first."""

    def __init__(
        self,
        *,
        chain: Callable[[], Sequence[bytes]],
        agents: AgentTable,
        index: AuthorizedIndex,
        trust: Trust,
        clock: Clock,
    ) -> None:
        self._chain = chain
        self._agents = agents
        self._index = index
        self._trust = trust
        self._clock = clock
        self._started_at = clock.monotonic()

    async def GetInfo(self, request: pb.GetInfoRequest, context: Context) -> pb.GetInfoResponse:
        own = self._trust.trust_domain
        leaf, *authorities = self._chain()
        return pb.GetInfoResponse(
            svid_chain=[
                _certificate(load_certificate(leaf), server_id(own)),
                *(_certificate(load_authority(der), own.id) for der in authorities),
            ],
            uptime=int(self._clock.monotonic() - self._started_at),
            agents_count=len(self._agents.agents),
            federated_bundles_count=len(self._trust.bundles.keys() - {own}),
            entries_count=len(self._index),
        )


def _certificate(certificate: Any, spiffe_id: Any) -> pb.GetInfoResponse.Cert:
    """Subjects are written as RFC 4514 says, last attribute first."""
    return pb.GetInfoResponse.Cert(
        id=id_message(spiffe_id),
        expires_at=seconds(certificate.not_valid_after_utc),
        subject=certificate.subject.rfc4514_string(_NAMES),
    )
