"""spire.api.server.localauthority.v1.LocalAuthority: which keys of this server sign, will sign, have signed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from ca.api.convert.ids import seconds
from ca.api.later import WIT, later
from ca.authority.state import Authority, AuthorityKind, of_kind
from ca.proto.spire import server_localauthority_pb2 as pb
from ca.proto.spire import server_localauthority_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
_LATER = "changing authorities by hand is not yet implemented; they are rotated on schedule"


class LocalAuthorityService(server_localauthority_pb2_grpc.LocalAuthorityServicer):
    """`authorities` gives this server's authorities of both kinds. Only the states can be asked for."""

    def __init__(self, authorities: Callable[[], tuple[Authority, ...]]) -> None:
        self._authorities = authorities

    async def GetX509AuthorityState(
        self, request: pb.GetX509AuthorityStateRequest, context: Context
    ) -> pb.GetX509AuthorityStateResponse:
        return pb.GetX509AuthorityStateResponse(**self._states(AuthorityKind.X509))

    async def GetJWTAuthorityState(
        self, request: pb.GetJWTAuthorityStateRequest, context: Context
    ) -> pb.GetJWTAuthorityStateResponse:
        return pb.GetJWTAuthorityStateResponse(**self._states(AuthorityKind.JWT))

    PrepareX509Authority = later(_LATER)
    ActivateX509Authority = later(_LATER)
    TaintX509Authority = later(_LATER)
    RevokeX509Authority = later(_LATER)
    TaintX509UpstreamAuthority = later(_LATER)
    RevokeX509UpstreamAuthority = later(_LATER)
    PrepareJWTAuthority = later(_LATER)
    ActivateJWTAuthority = later(_LATER)
    TaintJWTAuthority = later(_LATER)
    RevokeJWTAuthority = later(_LATER)
    GetWITAuthorityState = later(WIT)
    PrepareWITAuthority = later(WIT)
    ActivateWITAuthority = later(WIT)
    TaintWITAuthority = later(WIT)
    RevokeWITAuthority = later(WIT)

    def _states(self, kind: AuthorityKind) -> dict[str, pb.AuthorityState]:
        """One of each state; SPIRE has a single old one, so of several the youngest is shown."""
        youngest_last = sorted(of_kind(self._authorities(), kind), key=lambda authority: authority.not_before)
        return {authority.status.value: _message(authority) for authority in youngest_last}


def _message(authority: Authority) -> pb.AuthorityState:
    return pb.AuthorityState(authority_id=authority.authority_id, expires_at=seconds(authority.not_after))
