"""spire.api.server.localauthority.v1.LocalAuthority: which keys of this server sign, will sign, have signed; and how
that is changed by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc

from ca.api.convert.ids import seconds
from ca.api.later import WIT, later
from ca.authority.state import Authority, AuthorityKind, AuthorityState, of_kind
from ca.errors import FailedPrecondition, Internal, InvalidArgument
from ca.proto.spire import server_localauthority_pb2 as pb
from ca.proto.spire import server_localauthority_pb2_grpc
from ca.service.rotation import AuthorityManager

Context = grpc.aio.ServicerContext[Any, Any]

X509, JWT = AuthorityKind.X509, AuthorityKind.JWT
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LocalAuthorityService(server_localauthority_pb2_grpc.LocalAuthorityServicer):
    """SPIRE's rules, in SPIRE's words and codes; what they allow is then for the manager to do, or to refuse.

    There is no force here. SPIRE knows one old authority of each kind; all that are there can be named.
    """

    def __init__(self, manager: AuthorityManager) -> None:
        self._manager = manager

    async def GetX509AuthorityState(
        self, request: pb.GetX509AuthorityStateRequest, context: Context
    ) -> pb.GetX509AuthorityStateResponse:
        return pb.GetX509AuthorityStateResponse(**self._states(X509))

    async def PrepareX509Authority(
        self, request: pb.PrepareX509AuthorityRequest, context: Context
    ) -> pb.PrepareX509AuthorityResponse:
        return pb.PrepareX509AuthorityResponse(prepared_authority=_message(await self._manager.prepare(X509)))

    async def ActivateX509Authority(
        self, request: pb.ActivateX509AuthorityRequest, context: Context
    ) -> pb.ActivateX509AuthorityResponse:
        self._require_prepared(X509, request.authority_id)
        done = await self._manager.activate(X509, request.authority_id)
        return pb.ActivateX509AuthorityResponse(activated_authority=_message(done))

    async def TaintX509Authority(
        self, request: pb.TaintX509AuthorityRequest, context: Context
    ) -> pb.TaintX509AuthorityResponse:
        self._refuse_below_upstream(request.authority_id, "tainted")
        self._require_taintable(X509, request.authority_id)
        done = await self._manager.taint(X509, request.authority_id)
        return pb.TaintX509AuthorityResponse(tainted_authority=_message(done))

    async def RevokeX509Authority(
        self, request: pb.RevokeX509AuthorityRequest, context: Context
    ) -> pb.RevokeX509AuthorityResponse:
        self._refuse_below_upstream(request.authority_id, "revoked")
        self._require_revocable(X509, request.authority_id)
        done = await self._manager.revoke(X509, request.authority_id)
        return pb.RevokeX509AuthorityResponse(revoked_authority=_named(done))

    async def TaintX509UpstreamAuthority(
        self, request: pb.TaintX509UpstreamAuthorityRequest, context: Context
    ) -> pb.TaintX509UpstreamAuthorityResponse:
        self._require_replaced_root(request.subject_key_id, "provided subject key id is not valid")
        await self._manager.taint_upstream(request.subject_key_id)
        return pb.TaintX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    async def RevokeX509UpstreamAuthority(
        self, request: pb.RevokeX509UpstreamAuthorityRequest, context: Context
    ) -> pb.RevokeX509UpstreamAuthorityResponse:
        self._require_replaced_root(request.subject_key_id, "invalid subject key ID")
        await self._manager.revoke_upstream(request.subject_key_id)
        return pb.RevokeX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    async def GetJWTAuthorityState(
        self, request: pb.GetJWTAuthorityStateRequest, context: Context
    ) -> pb.GetJWTAuthorityStateResponse:
        return pb.GetJWTAuthorityStateResponse(**self._states(JWT))

    async def PrepareJWTAuthority(
        self, request: pb.PrepareJWTAuthorityRequest, context: Context
    ) -> pb.PrepareJWTAuthorityResponse:
        return pb.PrepareJWTAuthorityResponse(prepared_authority=_message(await self._manager.prepare(JWT)))

    async def ActivateJWTAuthority(
        self, request: pb.ActivateJWTAuthorityRequest, context: Context
    ) -> pb.ActivateJWTAuthorityResponse:
        self._require_prepared(JWT, request.authority_id)
        done = await self._manager.activate(JWT, request.authority_id)
        return pb.ActivateJWTAuthorityResponse(activated_authority=_message(done))

    async def TaintJWTAuthority(
        self, request: pb.TaintJWTAuthorityRequest, context: Context
    ) -> pb.TaintJWTAuthorityResponse:
        self._require_taintable(JWT, request.authority_id)
        done = await self._manager.taint(JWT, request.authority_id)
        return pb.TaintJWTAuthorityResponse(tainted_authority=_named(done))

    async def RevokeJWTAuthority(
        self, request: pb.RevokeJWTAuthorityRequest, context: Context
    ) -> pb.RevokeJWTAuthorityResponse:
        self._require_revocable(JWT, request.authority_id)
        done = await self._manager.revoke(JWT, request.authority_id)
        return pb.RevokeJWTAuthorityResponse(revoked_authority=_named(done))

    GetWITAuthorityState = later(WIT)
    PrepareWITAuthority = later(WIT)
    ActivateWITAuthority = later(WIT)
    TaintWITAuthority = later(WIT)
    RevokeWITAuthority = later(WIT)

    def _states(self, kind: AuthorityKind) -> dict[str, pb.AuthorityState]:
        """One of each state. Of several old ones it is the one that signed last; a revoked one counts as old, as in
        SPIRE, and one that never signed is not shown unless there is no other."""
        slots: dict[str, Authority] = {}
        for one in sorted(of_kind(self._manager.authorities, kind), key=_age):
            slots["old" if one.status == AuthorityState.REVOKED else one.status.value] = one
        return {slot: _message(one) for slot, one in slots.items()}

    def _find(self, kind: AuthorityKind, authority_id: str) -> Authority | None:
        """This server's own first; then one of another server, dead perhaps, that shares the store."""
        known = (*self._manager.authorities, *self._manager.journal.authorities)
        return next((one for one in of_kind(known, kind) if one.authority_id == authority_id), None)

    def _require_prepared(self, kind: AuthorityKind, authority_id: str) -> None:
        if not authority_id:
            raise InvalidArgument("no authority ID provided", reason="AUTHORITY_ID_MISSING")
        found = self._find(kind, authority_id)
        if found is None or found.status != AuthorityState.PREPARED:
            raise InvalidArgument("unexpected authority ID", reason="AUTHORITY_STATE", hint=_HINT)

    def _require_taintable(self, kind: AuthorityKind, authority_id: str) -> None:
        if not authority_id:
            raise InvalidArgument("no authority ID provided", reason="AUTHORITY_ID_MISSING")
        found = self._find(kind, authority_id)
        if found is None or found.status == AuthorityState.REVOKED:
            raise InvalidArgument("unexpected authority ID", reason="AUTHORITY_STATE", hint=_HINT)
        if found.status == AuthorityState.ACTIVE:
            raise InvalidArgument("unable to taint current local authority", reason="AUTHORITY_STATE", hint=_FIRST)
        if found.status != AuthorityState.OLD:
            detail = "only Old local authorities can be tainted: unsupported local authority status: PREPARED"
            raise InvalidArgument(detail, reason="AUTHORITY_STATE", hint=_FIRST)
        if found.tainted:
            what = "X.509 authority: root CA" if kind == X509 else "JWT authority: key"
            raise Internal(f"failed to taint {what} is already tainted", reason="AUTHORITY_STATE")

    def _require_revocable(self, kind: AuthorityKind, authority_id: str) -> None:
        found = self._find(kind, authority_id)
        problem = ""
        if not authority_id:
            problem = "no authority ID provided"
        elif found is not None and found.status == AuthorityState.ACTIVE:
            problem = "unable to use current authority"
        elif kind == JWT and found is not None and found.status == AuthorityState.PREPARED:
            problem = "unable to use a prepared key"
        elif found is None or found.status != AuthorityState.OLD:
            problem = (
                "only Old local authority can be revoked"
                if kind == X509
                else "no JWT authority found with provided authority ID"
            )
        if problem:
            raise InvalidArgument(f"invalid authority ID: {problem}", reason="AUTHORITY_STATE", hint=_HINT)
        if found is not None and not found.tainted:
            what = ("X.509", "root CA") if kind == X509 else ("JWT", "key")
            detail = f"failed to revoke {what[0]} authority: it is not possible to revoke an untainted {what[1]}"
            raise Internal(detail, reason="AUTHORITY_STATE", hint="taint it first")

    def _refuse_below_upstream(self, authority_id: str, verb: str) -> None:
        """Below an upstream the root is what verifiers believe in. An own root of before still is an own root."""
        found = self._find(X509, authority_id)
        if self._manager.has_upstream and (found is None or found.upstream_authority_id):
            raise FailedPrecondition(
                f"local authority can't be {verb} if there is an upstream authority",
                reason="UPSTREAM_CONFIGURED",
                hint="name the upstream's root: TaintX509UpstreamAuthority, RevokeX509UpstreamAuthority",
            )

    def _require_replaced_root(self, subject_key_id: str, prefix: str) -> None:
        if not self._manager.has_upstream:
            raise FailedPrecondition("upstream authority is not configured", reason="NO_UPSTREAM")
        below = [one for one in of_kind(self._manager.authorities, X509) if one.upstream_authority_id == subject_key_id]
        states = {one.status for one in below}
        problem = ""
        if not subject_key_id:
            problem = "no subject key ID provided"
        elif AuthorityState.ACTIVE in states:
            problem = "unable to use upstream authority signing current authority"
        elif AuthorityState.OLD not in states:
            problem = "upstream authority didn't sign the old local authority"
        if problem:
            raise InvalidArgument(f"{prefix}: {problem}", reason="AUTHORITY_STATE", hint=_HINT)


_HINT = "see `caadmin ca status`"
_FIRST = "prepare and activate another one first"


def _age(authority: Authority) -> tuple[datetime, datetime]:
    """Who signed last comes last."""
    return authority.activated_at or _EPOCH, authority.not_before


def _message(authority: Authority) -> pb.AuthorityState:
    return pb.AuthorityState(
        authority_id=authority.authority_id,
        expires_at=seconds(authority.not_after),
        upstream_authority_subject_key_id=authority.upstream_authority_id,
    )


def _named(authority: Authority) -> pb.AuthorityState:
    return pb.AuthorityState(authority_id=authority.authority_id)
