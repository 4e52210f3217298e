"""What SPIRE's tools ask an agent about itself over the admin socket (spire.agent.debug.v1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from ca.errors import BurgeeError
from ca.identity.bundle import TrustBundle
from ca.identity.certificate import load_authority, load_certificate
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.proto.spire import agent_debug_pb2, agent_debug_pb2_grpc, types_pb2
from sds.workloads import Context

Cert = agent_debug_pb2.GetInfoResponse.Cert


class DebugApi(agent_debug_pb2_grpc.DebugServicer):
    """The service. `started` is the clock's monotonic time of the start, `chain` the agent's own SVID, DER, leaf first,
    `bundle` the own trust domain's."""

    def __init__(
        self,
        *,
        clock: Clock,
        started: float,
        chain: Callable[[], Sequence[bytes]],
        bundle: Callable[[], TrustBundle | None],
        last_sync_at: Callable[[], datetime | None],
        x509_svids: Callable[[], int],
        jwt_svids: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._started = started
        self._chain = chain
        self._bundle = bundle
        self._last_sync_at = last_sync_at
        self._x509_svids = x509_svids
        self._jwt_svids = jwt_svids

    async def GetInfo(
        self, request: agent_debug_pb2.GetInfoRequest, context: Context
    ) -> agent_debug_pb2.GetInfoResponse:
        svids, last_sync = self._x509_svids(), self._last_sync_at()
        return agent_debug_pb2.GetInfoResponse(
            svid_chain=[_cert(certificate) for certificate in anchored(self._chain(), self._bundle())],
            uptime=int(self._clock.monotonic() - self._started),
            svids_count=svids,
            last_sync_success=int(last_sync.timestamp()) if last_sync else 0,
            cached_x509_svids_count=svids,
            cached_jwt_svids_count=self._jwt_svids(),
        )


def anchored(chain: Sequence[bytes], bundle: TrustBundle | None) -> list[x509.Certificate]:
    """The chain with the root of the bundle that it ends at, as far as there is one."""
    certificates = [load_certificate(der) for der in chain]
    if not certificates or bundle is None:
        return certificates
    for authority in bundle.x509_authorities:
        root = load_authority(authority.certificate)
        if root != certificates[-1] and _issued(certificates[-1], root):
            return [*certificates, root]
    return certificates


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _cert(certificate: x509.Certificate) -> Cert:
    names = {NameOID.SERIAL_NUMBER: "SERIALNUMBER"}  # as SPIRE shows it; RFC 4514 has no short name for it
    return Cert(
        id=_spiffe_id(certificate),
        expires_at=int(certificate.not_valid_after_utc.timestamp()),
        subject=certificate.subject.rfc4514_string(names),
    )


def _spiffe_id(certificate: x509.Certificate) -> types_pb2.SPIFFEID | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        found = SpiffeId.parse(uri)
    except (x509.ExtensionNotFound, ValueError, BurgeeError):
        return None
    return types_pb2.SPIFFEID(trust_domain=found.trust_domain.name, path=found.path)
