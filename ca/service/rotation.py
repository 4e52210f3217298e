"""Keeps this server's signing authorities: drives the pure state machine over the store and the key manager."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority.actions import Activate, Prepare, Prune, Published, Retire, apply
from ca.authority.schedule import due, next_due
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find, of_kind
from ca.errors import BurgeeError, Unavailable
from ca.identity.spiffe_id import TrustDomain
from ca.issuing.issuer import IssuerTemplate
from ca.issuing.jwt_token import JwtKey
from ca.issuing.lifetime import plan_lifetime
from ca.issuing.serial import KID_RANDOM_BYTES, SERIAL_RANDOM_BYTES, new_kid, new_serial
from ca.issuing.x509 import prepare_root, sign
from ca.ports import Clock, KeyManager, KeyType, Signer
from ca.runtime import log, metrics
from ca.runtime.health import Problem
from ca.service.authority_values import from_record, publish, to_record, withdraw
from ca.service.follower import Follower
from ca.service.signing import JwtSigning, X509Signing
from ca.store.store import Store
from ca.store.values import IssuanceRecord

logger = log.get("authority")

LONGEST_SLEEP_SECONDS = 10.0
SHORTEST_SLEEP_SECONDS = 0.2
RETRY_SECONDS = 2.0
CLOCK_TOLERANCE = timedelta(seconds=60)
MAX_STEPS = 8
"""Rounds of one tick; preparing, activating and pruning take three."""

_not_after = metrics.gauge("authority_not_after_seconds", "When the active authority expires, Unix time.", ["kind"])


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSettings:
    """`server` names the server that holds the keys."""

    trust_domain: TrustDomain
    server: str
    ca_ttl_seconds: int
    backdate_seconds: int
    x509_key_type: KeyType
    jwt_key_type: KeyType


class AuthorityManager:
    """Implements ca.service.signing.Authority. `start` first, then `run`."""

    def __init__(
        self,
        *,
        settings: RotationSettings,
        store: Store,
        keys: KeyManager,
        follower: Follower,
        clock: Clock,
        pool: ThreadPoolExecutor,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives 0 to 1."""
        self._jitter = jitter
        self._settings = settings
        self._store = store
        self._keys = keys
        self._follower = follower
        self._clock = clock
        self._pool = pool
        self._authorities: tuple[Authority, ...] = ()
        self._signers: dict[str, Signer] = {}
        self._x509: X509Signing | None = None
        self._jwt: JwtSigning | None = None
        self._begins: dict[AuthorityKind, datetime] = {}
        self._lock = asyncio.Lock()

    @property
    def authorities(self) -> tuple[Authority, ...]:
        """This server's authorities of both kinds."""
        return self._authorities

    async def start(self) -> None:
        """Takes up what the store remembers and this server still has the keys of; makes what is missing.

        An authority whose key is gone signs no more, and stays in the bundle until its end.
        """
        records = await self._store.authorities.list(self._settings.server)
        self._authorities = tuple(from_record(record) for record in records)
        for authority in self._authorities:
            if authority.status == AuthorityState.OLD:
                continue
            signer = await self._keys.get(authority.key_id)
            if signer is None:
                logger.warning(
                    "key of an authority is gone",
                    kind=authority.kind,
                    authority_id=authority.authority_id,
                    reason="KEY_MISSING",
                )
                await self._save(apply(self._authorities, Retire(authority.authority_id)))
            else:
                self._signers[authority.key_id] = signer
        if self._authorities:  # a crash may have come between storing and publishing
            await self._publish(self._authorities)
        await self.tick()

    async def run(self) -> None:
        """Ticks when something is due, until cancelled; what is out of reach is tried again."""
        failing = ""
        while True:
            await self._clock.sleep(RETRY_SECONDS * (0.5 + self._jitter()) if failing else self._pause())
            try:
                await self.tick()
            except Unavailable as error:
                if failing != error.reason:
                    logger.warning("authorities cannot be looked after", reason=error.reason, detail=error.detail)
                failing = error.reason
            else:
                failing = ""

    def _pause(self) -> float:
        """Until something is due, in seconds."""
        now = self._clock.now()
        waits = [(next_due(self._authorities, kind=kind, now=now) - now) for kind in AuthorityKind]
        seconds = min(waits, default=timedelta()).total_seconds()
        return min(max(seconds, SHORTEST_SLEEP_SECONDS), LONGEST_SLEEP_SECONDS)

    async def tick(self) -> None:
        """Does what is due now. Raises Unavailable when keys or store are out of reach; nothing is half done then."""
        async with self._lock:
            for _ in range(MAX_STEPS):
                actions = [
                    a for kind in AuthorityKind for a in due(self._authorities, kind=kind, now=self._clock.now())
                ]
                if not actions:
                    break
                await self._prepare([action.kind for action in actions if isinstance(action, Prepare)])
                for action in actions:
                    if isinstance(action, Activate):
                        await self._activate(action)
                    elif isinstance(action, Prune):
                        await self._prune(action)
            self._take_up()

    def x509(self) -> X509Signing:
        if self._x509 is None or self._clock.now() >= self._x509.issuer.not_after:
            raise _nothing_active(AuthorityKind.X509)
        self._refuse_before(AuthorityKind.X509)
        return self._x509

    def jwt(self) -> JwtSigning:
        if self._jwt is None or self._clock.now() >= self._jwt.not_after:
            raise _nothing_active(AuthorityKind.JWT)
        self._refuse_before(AuthorityKind.JWT)
        return self._jwt

    def check(self) -> Problem | None:
        """For ca.runtime.health."""
        try:
            self.x509()
            self.jwt()
        except BurgeeError as error:
            return Problem(reason=error.reason, detail=error.detail, hint=error.hint)
        return None

    def _refuse_before(self, kind: AuthorityKind) -> None:
        """What is signed by a clock of before the authority's own beginning would have ended, or nearly, elsewhere."""
        begins, now = self._begins[kind], self._clock.now()
        if now < begins - CLOCK_TOLERANCE:
            raise Unavailable(
                f"the active {kind} authority begins at {begins.isoformat()}, this server's clock says "
                f"{now.isoformat(timespec='seconds')}",
                reason="CLOCK_BEHIND",
                hint="set this server's clock",
            )

    async def _prepare(self, kinds: Sequence[AuthorityKind]) -> None:
        """New authorities: keys made, rows stored, then one change of the bundle for all of them."""
        if not kinds:
            return
        made = [await self._make(kind) for kind in kinds]
        after = self._authorities
        for authority in made:
            after = apply(after, Published(authority))
        await self._save(after)
        await self._publish(made)
        for authority in made:
            logger.info(
                "authority prepared",
                kind=authority.kind,
                authority_id=authority.authority_id,
                not_after=authority.not_after.isoformat(),
            )

    async def _activate(self, action: Activate) -> None:
        await self._save(apply(self._authorities, action))
        logger.info("authority activated", authority_id=action.authority_id)

    async def _prune(self, action: Prune) -> None:
        gone = next(a for a in self._authorities if a.authority_id == action.authority_id)
        await self._store.bundles.update(self._settings.trust_domain, lambda bundle: withdraw(bundle, gone))
        await self._save(apply(self._authorities, action))
        await self._keys.delete(gone.key_id)
        self._signers.pop(gone.key_id, None)
        await self._follower.catch_up()
        logger.info("authority pruned", kind=gone.kind, authority_id=gone.authority_id)

    async def _make(self, kind: AuthorityKind) -> Authority:
        settings = self._settings
        key_type = settings.x509_key_type if kind == AuthorityKind.X509 else settings.jwt_key_type
        signer = await self._keys.generate(f"{kind}-{secrets.token_hex(8)}", key_type)
        self._signers[signer.key_id] = signer
        if kind == AuthorityKind.X509:
            return await self._make_root(signer)
        now = self._clock.now().replace(microsecond=0)
        return Authority(
            kind=kind,
            authority_id=new_kid(os.urandom(KID_RANDOM_BYTES)),
            key_id=signer.key_id,
            key_type=signer.key_type,
            status=AuthorityState.PREPARED,
            not_before=now,
            not_after=now + timedelta(seconds=settings.ca_ttl_seconds),
            server=settings.server,
            public_key=signer.public_key_der,
        )

    async def _make_root(self, signer: Signer) -> Authority:
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
        await self._store.issuance.append([record])
        loop = asyncio.get_running_loop()
        certificate = await loop.run_in_executor(self._pool, lambda: sign(token, signer, remote=self._keys.remote))
        return Authority(
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

    async def _publish(self, authorities: Sequence[Authority]) -> None:
        """Into the bundle, and from there into this process's own view of it."""
        await self._store.bundles.update(self._settings.trust_domain, lambda bundle: publish(bundle, authorities))
        await self._follower.catch_up()

    async def _save(self, after: tuple[Authority, ...]) -> None:
        """Stores what changed; memory follows only when the store has it."""
        for kind in AuthorityKind:
            wanted = of_kind(after, kind)
            if wanted != of_kind(self._authorities, kind):
                await self._store.authorities.replace(
                    self._settings.server, kind.value, [to_record(authority) for authority in wanted]
                )
        self._authorities = after

    def _take_up(self) -> None:
        """The active authorities, ready to sign."""
        x509 = find(self._authorities, AuthorityState.ACTIVE, AuthorityKind.X509)
        jwt = find(self._authorities, AuthorityState.ACTIVE, AuthorityKind.JWT)
        if x509 is not None:
            issuer = IssuerTemplate.from_certificate(x509.certificate)
            self._x509 = X509Signing(issuer=issuer, signer=self._signers[x509.key_id], remote=self._keys.remote)
            self._begins[x509.kind] = x509.not_before
            _note(x509.kind, x509.not_after)
        if jwt is not None:
            self._jwt = JwtSigning(
                key=JwtKey(kid=jwt.authority_id, key_type=jwt.key_type, public_key_der=jwt.public_key),
                signer=self._signers[jwt.key_id],
                remote=self._keys.remote,
                not_after=jwt.not_after,
            )
            self._begins[jwt.kind] = jwt.not_before
            _note(jwt.kind, jwt.not_after)


def _note(kind: AuthorityKind, not_after: datetime) -> None:
    _not_after.labels(kind.value).set(not_after.timestamp())


def _nothing_active(kind: AuthorityKind) -> Unavailable:
    return Unavailable(
        f"there is no active {kind} authority", reason="NO_ACTIVE_AUTHORITY", hint="see the server's log"
    )
