"""Issues JWT-SVIDs through the same steps as certificates: prepare, record durably, sign, re-check."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.errors import BurgeeError, Internal
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId
from ca.issuing.jwt import prepare_jwt, sign_jwt
from ca.issuing.jwt_token import JwtToken
from ca.issuing.lifetime import Lifetime, plan_lifetime
from ca.issuing.serial import JTI_RANDOM_BYTES, new_jti
from ca.runtime import log
from ca.service.issuance import Issuer, count_issued, count_refused, report_caps
from ca.service.signing import JwtSigning, refuse_in_vain
from ca.store.values import IssuanceRecord

logger = log.get("issuance")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedJwt:
    """`token` is the compact serialization; times are the token's iat and exp."""

    spiffe_id: SpiffeId
    token: str
    lifetime: Lifetime

    @property
    def issued_at(self) -> datetime:
        return self.lifetime.issued_at

    @property
    def expires_at(self) -> datetime:
        return self.lifetime.not_after


class JwtIssuer:
    """Shares pool, records and settings with the issuer of certificates."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def for_workload(self, agent_id: SpiffeId, entry: RegistrationEntry, audience: Sequence[str]) -> IssuedJwt:
        """For an entry that the calling agent may serve."""
        return await self._issue(
            entry.spiffe_id,
            audience,
            entry.jwt_svid_ttl_seconds,
            agent=str(agent_id),
            entry=entry,
        )

    async def for_token(
        self, requester: str, entry: RegistrationEntry, audience: Sequence[str], ttl_seconds: int
    ) -> IssuedJwt:
        """For whoever exchanged a token; `requester` stands in the record in place of an agent."""
        return await self._issue(entry.spiffe_id, audience, ttl_seconds, agent=requester, entry=entry)

    async def mint(self, spiffe_id: SpiffeId, audience: Sequence[str], ttl_seconds: int) -> IssuedJwt:
        """For an administrator. A TTL of 0 or less means the default, as in SPIRE."""
        return await self._issue(spiffe_id, audience, max(ttl_seconds, 0))

    async def _issue(
        self,
        spiffe_id: SpiffeId,
        audience: Sequence[str],
        ttl_seconds: int,
        *,
        agent: str = "",
        entry: RegistrationEntry | None = None,
    ) -> IssuedJwt:
        try:
            svid = await self._make(spiffe_id, audience, ttl_seconds, agent, entry)
        except BurgeeError as error:
            count_refused("jwt", error.reason)
            raise
        count_issued("jwt")
        if svid.lifetime.caps:
            report_caps("jwt", {svid.lifetime.caps[0].reason: [svid.lifetime.requested_seconds]})
        return svid

    async def _make(
        self,
        spiffe_id: SpiffeId,
        audience: Sequence[str],
        ttl_seconds: int,
        agent: str,
        entry: RegistrationEntry | None,
    ) -> IssuedJwt:
        settings = self._issuer.settings
        signing = self._issuer.authority.jwt()
        refuse_in_vain(signing)
        token = prepare_jwt(
            spiffe_id=spiffe_id,
            audience=audience,
            lifetime=plan_lifetime(
                self._issuer.now(), ttl_seconds, settings.jwt_svid_ttl_seconds, signing.not_after, backdate_seconds=0
            ),
            key=signing.key,
            issuer=settings.jwt_issuer or "",
            jti=new_jti(os.urandom(JTI_RANDOM_BYTES)) if entry is not None and entry.jwt_svid_include_jti else "",
        )
        await self._issuer.record([self._record(token, signing, agent, entry)])
        return IssuedJwt(spiffe_id=spiffe_id, token=await self._sign(token, signing), lifetime=token.lifetime)

    async def _sign(self, token: JwtToken, signing: JwtSigning) -> str:
        """A local EC key signs in less time than a thread takes to hear of it; others block and get a thread."""
        try:
            if signing.remote:
                signer = signing.signer
                return await self._issuer.waiting_for(signer, lambda t: sign_jwt(t, signer, remote=True), token)
            if signing.key.key_type.startswith("rsa"):
                return await self._issuer.in_pool(lambda t: sign_jwt(t, signing.signer, remote=False), token)
            return sign_jwt(token, signing.signer, remote=False)
        except Internal as error:
            logger.error("token could not be signed", reason=error.reason, detail=error.detail)
            raise

    def _record(
        self, token: JwtToken, signing: JwtSigning, agent: str, entry: RegistrationEntry | None
    ) -> IssuanceRecord:
        return IssuanceRecord(
            kind="jwt",
            serial_or_kid=signing.key.kid,
            tbs_sha256=token.tbs_sha256,
            authority_id=signing.key.kid,
            server=self._issuer.settings.server,
            spiffe_id=str(token.spiffe_id),
            entry_id="" if entry is None else entry.id,
            entry_revision=0 if entry is None else entry.revision_number,
            agent=agent,
            not_before=token.lifetime.not_before,
            not_after=token.lifetime.not_after,
        )
