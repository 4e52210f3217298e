"""istio.v1.auth.IstioCertificateService, as Istio's own CA answers it: to pilot-agent and to ztunnel.

A proxy is told Istio's words and a reason code; of a refused impersonation no more than that. The log has, under the
request's id, what was compared.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct

from ca.api.access import current_caller
from ca.api.audit import Auditor
from ca.api.istio_limits import IstioLimits
from ca.errors import BurgeeError, InvalidArgument, Unauthenticated
from ca.identity.bundle_pem import certificate_pem, format_pem
from ca.issuing.csr import MAX_CSR_BYTES, Csr
from ca.proto.istio import ca_pb2 as pb
from ca.proto.istio import ca_pb2_grpc
from ca.runtime import log
from ca.service.attestation_ring import AttestationRing
from ca.service.issuance import Issuer
from ca.service.issuance_jobs import IssuedX509
from ca.service.istio import NOT_AUTHENTICATED, Entitled, IstioAuthority
from ca.service.trust import Trust
from ca.store.audit import AuditItem

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
RING_NAME = "istio"
"""What stands in place of an attestor where recent attestations are shown."""

MAX_PEM_CHARACTERS = 2 * MAX_CSR_BYTES
_PEM = re.compile(
    r"\s*-----BEGIN (?P<what>(?:NEW )?CERTIFICATE REQUEST)-----\s(?P<body>[A-Za-z0-9+/=\s]+)-----END (?P=what)-----\s*"
)
_BEARER = re.compile(r"[Bb]earer (\S+)")

Context = grpc.aio.ServicerContext[Any, Any]

logger = log.get("istio")


class IstioService(ca_pb2_grpc.IstioCertificateServiceServicer):
    """Rates, records and the log around `ca.service.istio`, and the shape of the answer."""

    def __init__(
        self,
        *,
        authority: IstioAuthority,
        issuer: Issuer,
        trust: Trust,
        auditor: Auditor,
        limits: IstioLimits,
        ring: AttestationRing,
    ) -> None:
        self._authority = authority
        self._issuer = issuer
        self._trust = trust
        self._auditor = auditor
        self._limits = limits
        self._ring = ring

    async def CreateCertificate(
        self, request: pb.IstioCertificateRequest, context: Context
    ) -> pb.IstioCertificateResponse:
        self._limits.address()
        with self._explained():
            async with self._limits.review():
                token, cluster_id = _credentials(context)
                caller = await self._authority.authenticate(token, cluster_id)
                self._limits.caller(caller.key)
                entitled = await self._authority.entitled(caller, _impersonated(request.metadata))
            csr, ttl_seconds = await self._wanted(request)
            async with self._limits.signature(caller.key):
                svid = await self._issue(entitled, csr, ttl_seconds)
        return pb.IstioCertificateResponse(cert_chain=chain_of(svid, format_pem(self._trust.own)))

    async def _wanted(self, request: pb.IstioCertificateRequest) -> tuple[Csr, int]:
        """The key and the lifetime. Raises InvalidArgument in the words of Istio's CA."""
        try:
            return await self._issuer.verify_csr(der_of(request.csr)), self._authority.ttl_seconds(
                request.validity_duration
            )
        except InvalidArgument as error:
            raise InvalidArgument(
                f"CSR signing error ({error.detail})", reason=error.reason, hint=error.hint
            ) from error

    async def _issue(self, entitled: Entitled, csr: Csr, ttl_seconds: int) -> IssuedX509:
        """In the audit log, as for other callers without an agent; who shows no token that holds is not in it."""
        item = AuditItem(str(entitled.identity), "")
        who = entitled.requester
        svid = await self._auditor.recorded(
            METHOD,
            current_caller().peer,
            who,
            item,
            lambda: self._issuer.for_account(who, entitled.identity, csr, ttl_seconds),
        )
        logger.info("certificate issued", requester=who, spiffe_id=item.name, not_after=svid.not_after.isoformat())
        return svid

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Which claim failed, and which pod was missed, is for administrators alone."""
        try:
            with self._ring.attempt(RING_NAME) as attempt:
                yield
        except BurgeeError as error:
            fault = error.__cause__.reason if isinstance(error.__cause__, BurgeeError) else error.reason
            logger.info(
                "certificate refused",
                reason=error.reason,
                fault=fault,
                peer=attempt.peer,
                compared="; ".join(f"{one.what}: {one.value}" for one in attempt.notes),
            )
            raise


def chain_of(svid: IssuedX509, roots_pem: str) -> list[str]:
    """As both of Istio's clients read it: one certificate in each element but the last, which holds every root.

    ztunnel refuses two in an element that is not the last, and an answer without a root; pilot-agent takes the last
    element for its roots and all together for its chain.
    """
    return [*(_line(certificate_pem(certificate)) for certificate in svid.chain), _line(roots_pem)]


def _line(pem: str) -> str:
    return pem.rstrip() + "\n"


def _credentials(context: Context) -> tuple[str, str]:
    """The bearer token and the cluster's ID, each empty where there is none. Raises Unauthenticated for several."""
    found: dict[str, list[str]] = {"authorization": [], "clusterid": []}
    for key, value in context.invocation_metadata() or ():
        if key in found and isinstance(value, str):
            found[key].append(value)
    if any(len(values) > 1 for values in found.values()):
        raise Unauthenticated(NOT_AUTHENTICATED, reason="ISTIO_TOKEN_MALFORMED")
    match = _BEARER.fullmatch("".join(found["authorization"]))
    return match[1] if match else "", "".join(found["clusterid"])


def _impersonated(metadata: Struct) -> str:
    """For whom, or nothing. What else Istio's clients say there (`CertSigner`) concerns its own signers."""
    value = metadata.fields.get("ImpersonatedIdentity")
    if value is None or value.WhichOneof("kind") == "null_value":
        return ""
    if value.WhichOneof("kind") != "string_value":
        raise InvalidArgument("`ImpersonatedIdentity` is no text", reason="ISTIO_METADATA")
    return value.string_value


def der_of(text: str) -> bytes:
    """One PEM block and nothing else. Raises InvalidArgument."""
    if len(text) > MAX_PEM_CHARACTERS:
        raise InvalidArgument(f"CSR is longer than {MAX_PEM_CHARACTERS} characters", reason="CSR_TOO_LONG")
    match = _PEM.fullmatch(text)
    if match is None:
        raise InvalidArgument("CSR is not one certificate request in PEM", reason="CSR_MALFORMED")
    try:
        return base64.b64decode("".join(match["body"].split()), validate=True)
    except ValueError as error:
        raise InvalidArgument("CSR is no base64", reason="CSR_MALFORMED") from error
