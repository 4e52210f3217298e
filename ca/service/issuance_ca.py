"""Signing certificates for servers below this one, through the same steps as SVIDs: prepare, record, sign, re-check."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.errors import FailedPrecondition, Internal
from ca.identity.entry import RegistrationEntry
from ca.issuing.csr import Csr
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.serial import SERIAL_RANDOM_BYTES, new_serial
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import prepare_downstream, sign
from ca.runtime import log
from ca.service.issuance import Issuer, count_issued, report_caps
from ca.service.signing import X509Signing, refuse_in_vain
from ca.store.values import IssuanceRecord
from ca.upstream.links import room_below

logger = log.get("issuance")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCa:
    """`chain` is DER: the new authority, then what leads from it to a root, without the root."""

    chain: tuple[bytes, ...]
    not_after: datetime


class DownstreamIssuer:
    """Shares pool, records and settings with the issuer of SVIDs. `ttl_seconds` is for requests that name none, `roots`
    gives the own bundle's (DER)."""

    def __init__(self, issuer: Issuer, *, ttl_seconds: int, roots: Callable[[], Sequence[bytes]]) -> None:
        self._issuer = issuer
        self._roots = roots
        self._ttl_seconds = ttl_seconds

    async def issue(self, entry: RegistrationEntry, request: bytes, ttl_seconds: int) -> IssuedCa:
        """An authority of this trust domain for the holder of a downstream entry; of its CSR only the key counts.

        A TTL of 0 or less means the default, as in SPIRE; it never outlives the authority that signs it. Raises
        InvalidArgument for a CSR without proof of possession, FailedPrecondition (UPSTREAM_PATH_LENGTH) where the
        upstream lets no authority follow ours.
        """
        csr = await self._issuer.verify_csr(request)
        signing = self._issuer.authority.x509()
        refuse_in_vain(signing)
        await self._require_room(signing)
        token = self._prepare(csr, ttl_seconds if ttl_seconds > 0 else self._ttl_seconds, signing)
        await self._issuer.record([self._record(token, entry)])
        try:
            certificate = await self._sign(token, signing)
        except Internal as error:
            logger.error("downstream authority could not be signed", reason=error.reason, detail=error.detail)
            raise
        self._report(token, entry)
        return IssuedCa(chain=(certificate, *signing.chain), not_after=token.not_after)

    async def _sign(self, token: IssuanceToken, signing: X509Signing) -> bytes:
        if signing.remote:
            return await self._issuer.waiting_for(signing.signer, lambda t: sign(t, signing.signer, remote=True), token)
        return await self._issuer.in_pool(lambda t: sign(t, signing.signer, remote=False), token)

    async def _require_room(self, signing: X509Signing) -> None:
        """RFC 5280 §6.1.4 (l), (m): nobody would believe what is issued below it."""
        if await asyncio.to_thread(room_below, signing.chain, self._roots(), now=self._issuer.now()) == 0:
            raise FailedPrecondition(
                "the path lengths above this server's authority let no other follow it",
                reason="UPSTREAM_PATH_LENGTH",
                hint="raise the path length above, then have a new authority made: `caadmin ca rotate x509`",
            )

    def _prepare(self, csr: Csr, ttl_seconds: int, signing: X509Signing) -> IssuanceToken:
        backdate = self._issuer.settings.backdate_seconds
        return prepare_downstream(
            public_key_der=csr.key.der,
            lifetime=plan_lifetime(
                self._issuer.now(), ttl_seconds, ttl_seconds, signing.issuer.not_after, backdate_seconds=backdate
            ),
            serial=new_serial(os.urandom(SERIAL_RANDOM_BYTES)),
            issuer=signing.issuer,
            chain_length=len(signing.chain) + 1,
        )

    def _record(self, token: IssuanceToken, entry: RegistrationEntry) -> IssuanceRecord:
        return IssuanceRecord(
            kind="ca",
            serial_or_kid=str(token.serial),
            tbs_sha256=token.tbs_sha256,
            authority_id=token.authority_id,
            server=self._issuer.settings.server,
            spiffe_id=str(token.spiffe_id),
            entry_id=entry.id,
            entry_revision=entry.revision_number,
            not_before=token.not_before,
            not_after=token.not_after,
            key_sha256=token.key_sha256,
        )

    def _report(self, token: IssuanceToken, entry: RegistrationEntry) -> None:
        count_issued("ca")
        if token.lifetime.caps:
            report_caps("ca", {token.lifetime.caps[0].reason: [token.lifetime.requested_seconds]})
        logger.info(
            "downstream authority issued",
            spiffe_id=str(entry.spiffe_id),
            serial=str(token.serial),
            not_after=token.not_after.isoformat(),
        )
