"""burgee.exchange.v1.Exchange: open to anyone who has a token of an issuer that is configured.

The caller learns a reason code and the request's id; the log has, under that id, what was compared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from ca.api.access import current_caller
from ca.api.audit import Auditor
from ca.api.convert.svids import jwt_message, x509_message
from ca.api.limits import Limits
from ca.api.svid import audience, require_csr
from ca.errors import BurgeeError, Exhausted
from ca.issuing.jwt import check_audience
from ca.proto.burgee import exchange_pb2 as pb
from ca.proto.burgee import exchange_pb2_grpc
from ca.runtime import log
from ca.runtime.notes import Note
from ca.service.attestation_ring import Attempt, AttestationRing
from ca.service.exchange import Entitled, Exchanger, Signing, Wanted
from ca.store.audit import AuditItem

X509, JWT = "/burgee.exchange.v1.Exchange/ExchangeX509SVID", "/burgee.exchange.v1.Exchange/ExchangeJWTSVID"
RING_NAME = "exchange"
"""What stands in place of an attestor where recent attestations are shown."""

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

logger = log.get("exchange")


class ExchangeService(exchange_pb2_grpc.ExchangeServicer):
    """Rates, records and the log around `ca.service.exchange`."""

    def __init__(self, *, exchanger: Exchanger, auditor: Auditor, limits: Limits, ring: AttestationRing) -> None:
        self._exchanger = exchanger
        self._auditor = auditor
        self._limits = limits
        self._ring = ring

    async def ExchangeX509SVID(
        self, request: pb.ExchangeX509SVIDRequest, context: Context
    ) -> pb.ExchangeX509SVIDResponse:
        async with self._explained(), self._limits.exchange():
            require_csr(request.csr)
            csr = await self._exchanger.verify_csr(request.csr)
            entitled = await self._exchanger.entitled(_wanted(request))
            await self._exchanger.use_up(entitled, Signing.X509)
            svid = await self._recorded(X509, entitled, lambda: self._exchanger.x509(entitled, csr))
        return pb.ExchangeX509SVIDResponse(svid=x509_message(svid))

    async def ExchangeJWTSVID(self, request: pb.ExchangeJWTSVIDRequest, context: Context) -> pb.ExchangeJWTSVIDResponse:
        async with self._explained(), self._limits.exchange():
            names = check_audience(audience(request.audience))
            entitled = await self._exchanger.entitled(_wanted(request))
            await self._exchanger.use_up(entitled, Signing.JWT)
            svid = await self._recorded(JWT, entitled, lambda: self._exchanger.jwt(entitled, names))
        return pb.ExchangeJWTSVIDResponse(svid=jwt_message(svid))

    async def _recorded(self, method: str, entitled: Entitled, issue: Callable[[], Awaitable[T]]) -> T:
        """In the audit log, as administrative calls are: begun before, finished after. Only who used a token up is
        recorded there, lest strangers fill it."""
        item = AuditItem(str(entitled.entry.spiffe_id), entitled.entry.id)
        svid = await self._auditor.recorded(method, current_caller().peer, entitled.requester, item, issue)
        logger.info(
            "token exchanged",
            call=method.rpartition("/")[2],
            requester=entitled.requester,
            spiffe_id=item.name,
            entry_id=item.about,
        )
        return svid

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        """Which claim failed is for administrators alone. Whoever is merely too fast makes no lines in the log."""
        try:
            with self._ring.attempt(RING_NAME) as attempt:
                yield
        except BurgeeError as error:
            if not isinstance(error, Exhausted):
                _log_refusal(error, attempt)
            raise


def _wanted(request: pb.ExchangeX509SVIDRequest | pb.ExchangeJWTSVIDRequest) -> Wanted:
    return Wanted(
        token=request.token, issuer=request.issuer, spiffe_id=request.spiffe_id, ttl_seconds=request.ttl_seconds
    )


def _log_refusal(error: BurgeeError, attempt: Attempt) -> None:
    fault = error.__cause__.reason if isinstance(error.__cause__, BurgeeError) else ""
    logger.info(
        "exchange refused",
        reason=error.reason,
        fault=fault or error.reason,
        peer=attempt.peer,
        compared=_compared(attempt.notes),
    )


def _compared(notes: tuple[Note, ...]) -> str:
    return "; ".join(f"{note.what}: {note.value}" for note in notes)
