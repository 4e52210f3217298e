"""Makes a new authority: its key, then its certificate, self-signed or from the upstream, or its key id."""

from __future__ import annotations

import asyncio
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority.journal import UpstreamMember
from ca.authority.schedule import MARGIN_LIMIT
from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.authority.story import clock_time
from ca.errors import FailedPrecondition
from ca.identity.bundle import JwtAuthority, authority_id
from ca.identity.certificate import load_authority
from ca.identity.spiffe_id import TrustDomain
from ca.issuing.csr import parse_csr
from ca.issuing.csr_new import request_info, signed_request
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.serial import KID_RANDOM_BYTES, SERIAL_RANDOM_BYTES, new_kid, new_serial
from ca.issuing.x509 import prepare_root, sign
from ca.ports import Clock, KeyManager, KeyType, Signer
from ca.service.authority_values import key_member, root_member
from ca.service.upstream_link import UpstreamLink
from ca.store.issuance import IssuanceLog
from ca.store.values import IssuanceRecord
from ca.upstream.proof import Need, ProvedCa


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSettings:
    """`server` names the server that holds the keys."""

    trust_domain: TrustDomain
    server: str
    ca_ttl_seconds: int
    backdate_seconds: int
    x509_key_type: KeyType
    jwt_key_type: KeyType

    @property
    def margin(self) -> timedelta:
        """What is kept in hand at the end of an authority, as `ca.authority.schedule.last_safe_second` does."""
        return min(timedelta(seconds=self.ca_ttl_seconds / 24), MARGIN_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A new authority, PREPARED and not yet published, and what its upstream wants trusted."""

    authority: Authority
    signer: Signer
    upstream: tuple[UpstreamMember, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a new X.509 authority from an upstream must be: long enough for SVIDs, below none of the roots `condemned`,
    and longer than what it is to replace."""

    longest_svid_seconds: int
    condemned: frozenset[str] = frozenset()
    must_outlast: datetime | None = None


class Maker:
    """Keeps nothing: what is half made when it fails is a key, which the journal has a note of."""

    def __init__(
        self,
        *,
        settings: RotationSettings,
        keys: KeyManager,
        records: IssuanceLog,
        upstream: UpstreamLink | None,
        clock: Clock,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._records = records
        self._upstream = upstream
        self._clock = clock
        self._pool = pool

    async def make(self, kind: AuthorityKind, key_id: str, wanted: Wanted) -> Made:
        """A new authority with a new key of that id.

        Raises what key manager, store and upstream raise, and FailedPrecondition (UPSTREAM_*) for an answer of the
        upstream that cannot be used.
        """
        settings = self._settings
        key_type = settings.x509_key_type if kind == AuthorityKind.X509 else settings.jwt_key_type
        signer = await self._keys.generate(key_id, key_type)
        if kind == AuthorityKind.JWT:
            return await self._jwt(signer)
        if self._upstream is None:
            return await self._root(signer)
        return await self._below(self._upstream, signer, wanted)

    async def _jwt(self, signer: Signer) -> Made:
        """Published at the upstream first, where that keeps JWT authorities."""
        now = self._clock.now().replace(microsecond=0)
        authority = Authority(
            kind=AuthorityKind.JWT,
            authority_id=new_kid(os.urandom(KID_RANDOM_BYTES)),
            key_id=signer.key_id,
            key_type=signer.key_type,
            status=AuthorityState.PREPARED,
            not_before=now,
            not_after=now + timedelta(seconds=self._settings.ca_ttl_seconds),
            server=self._settings.server,
            public_key=signer.public_key_der,
        )
        if self._upstream is None:
            return Made(authority=authority, signer=signer)
        key = JwtAuthority(
            key_id=authority.authority_id, public_key=authority.public_key, expires_at=authority.not_after
        )
        kept = [one for one in await self._upstream.publish(key) if one.key_id != key.key_id]
        members = tuple(key_member(one, self._settings.server) for one in kept)
        return Made(authority=authority, signer=signer, upstream=members)

    async def _root(self, signer: Signer) -> Made:
        settings = self._settings
        ttl = settings.ca_ttl_seconds
        token = prepare_root(
            trust_domain=settings.trust_domain,
            public_key_der=signer.public_key_der,
            key_type=signer.key_type,
            lifetime=plan_lifetime(self._clock.now(), ttl, ttl, None, settings.backdate_seconds),
            serial=new_serial(os.urandom(SERIAL_RANDOM_BYTES)),
        )
        record = IssuanceRecord(
            kind="ca",
            serial_or_kid=str(token.serial),
            tbs_sha256=token.tbs_sha256,
            authority_id=token.authority_id,
            server=settings.server,
            spiffe_id=str(token.spiffe_id),
            not_before=token.not_before,
            not_after=token.not_after,
            key_sha256=token.key_sha256,
        )
        await self._records.append([record])
        loop = asyncio.get_running_loop()
        certificate = await loop.run_in_executor(self._pool, lambda: sign(token, signer, remote=self._keys.remote))
        authority = Authority(
            kind=AuthorityKind.X509,
            authority_id=token.authority_id,
            key_id=signer.key_id,
            key_type=signer.key_type,
            status=AuthorityState.PREPARED,
            not_before=token.lifetime.issued_at,
            not_after=token.not_after,
            server=settings.server,
            certificate=certificate,
        )
        return Made(authority=authority, signer=signer)

    async def _below(self, upstream: UpstreamLink, signer: Signer, wanted: Wanted) -> Made:
        settings = self._settings
        now = self._clock.now().replace(microsecond=0)
        csr = await asyncio.get_running_loop().run_in_executor(self._pool, self._request, signer)
        need = Need(
            ttl_seconds=settings.ca_ttl_seconds,
            longest_svid_seconds=wanted.longest_svid_seconds,
            margin_seconds=int(settings.margin.total_seconds()),
        )
        proved = await upstream.mint(csr, public_key_der=signer.public_key_der, need=need)
        root = authority_id(proved.root)
        _check_use(proved, root, wanted)
        await self._records.append([self._record(proved, signer)])
        authority = Authority(
            kind=AuthorityKind.X509,
            authority_id=authority_id(proved.chain[0]),
            key_id=signer.key_id,
            key_type=signer.key_type,
            status=AuthorityState.PREPARED,
            not_before=now,
            not_after=proved.not_after,
            server=settings.server,
            certificate=proved.chain[0],
            chain=proved.chain[1:],
            upstream_authority_id=root,
        )
        members = tuple(root_member(one, settings.server) for one in proved.roots)
        return Made(authority=authority, signer=signer, upstream=members)

    def _request(self, signer: Signer) -> bytes:
        """In a thread. What the signer gave is verified before it leaves."""
        info = request_info(signer.public_key_der, self._settings.trust_domain)
        request = signed_request(info, signer.key_type, signer.sign(info))
        parse_csr(request)
        return request

    def _record(self, proved: ProvedCa, signer: Signer) -> IssuanceRecord:
        """Of what the upstream signed for us, under the authority that signed it."""
        certificate = load_authority(proved.chain[0])
        above = proved.chain[1] if len(proved.chain) > 1 else proved.root
        return IssuanceRecord(
            kind="ca",
            serial_or_kid=str(certificate.serial_number),
            tbs_sha256=hashlib.sha256(certificate.tbs_certificate_bytes).digest(),
            authority_id=authority_id(above),
            server=self._settings.server,
            spiffe_id=str(self._settings.trust_domain.id),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            key_sha256=hashlib.sha256(signer.public_key_der).digest(),
        )


def _check_use(proved: ProvedCa, root: str, wanted: Wanted) -> None:
    if root in wanted.condemned:
        raise FailedPrecondition(
            f"the upstream's answer is refused: its root `{root}` is tainted, revoked or withdrawn",
            reason="UPSTREAM_ROOT_CONDEMNED",
            hint="let the upstream sign with another root",
        )
    if wanted.must_outlast is not None and proved.not_after <= wanted.must_outlast:
        raise FailedPrecondition(
            f"the upstream's answer is refused: it ends at {clock_time(proved.not_after)}, no later than the authority "
            "that it is to replace",
            reason="UPSTREAM_ENDS",
            hint="a certificate of the upstream ends soon: renew it there",
        )
