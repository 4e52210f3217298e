"""The server's own X.509-SVID: what the TLS listener presents, renewed at half of its life and after a taint."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from ca.errors import BurgeeError, Unavailable
from ca.identity.bundle_pem import certificate_pem
from ca.identity.certificate import authority_id, is_issued_by, load_certificate
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.runtime.health import Problem
from ca.runtime.tls import TlsMaterial
from ca.service.issuance import Issuer
from ca.service.issuance_jobs import IssuedX509
from ca.service.trust import Trust

logger = log.get("server-svid")

TICK_SECONDS = 1.0
LISTENER = "listener:istio"
"""Who has the certificate with DNS names, in records: the server's main SVID does not take its place."""

_not_after = metrics.gauge("server_svid_not_after_seconds", "When the server's own SVID expires, Unix time.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    svid: IssuedX509
    key_pem: bytes
    signed_by: str


class ServerSvid:
    """Its key never leaves memory; a new one with each renewal. `on_renewed` is told, to reload listeners.

    With `dns_names` it is one more, for a listener whose clients look at host names.
    """

    def __init__(self, *, issuer: Issuer, trust: Trust, clock: Clock, dns_names: tuple[str, ...] = ()) -> None:
        self._issuer = issuer
        self._trust = trust
        self._clock = clock
        self._dns_names = dns_names
        self._held: _Held | None = None
        self._failure = ""
        self._wake = asyncio.Event()
        self.on_renewed: Callable[[], None] = lambda: None
        trust.on_change(lambda _: self._wake.set())

    def material(self) -> TlsMaterial:
        """What the listener shows, and the authorities of all trust domains that a client may come from."""
        if self._held is None:
            raise Unavailable("the server has no SVID yet", reason="NO_SERVER_SVID")
        chain = "".join(certificate_pem(certificate) for certificate in self._held.svid.chain)
        bundles = self._trust.bundles.values()
        authorities = [a.certificate for b in bundles for a in b.x509_authorities if loadable(a.certificate)]
        return TlsMaterial(
            chain_pem=chain.encode(),
            key_pem=self._held.key_pem,
            client_authorities=tuple(dict.fromkeys(authorities)),
        )

    def chain_to_root(self) -> tuple[bytes, ...]:
        """The chain, then the authority of our bundle that it ends in, DER."""
        if self._held is None:
            raise Unavailable("the server has no SVID yet", reason="NO_SERVER_SVID")
        chain = self._held.svid.chain
        last = load_certificate(chain[-1]).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        signer = (last.value.key_identifier or b"").hex()
        roots = (authority.certificate for authority in self._trust.own.x509_authorities)
        return (*chain, *(root for root in roots if authority_id(root) == signer))

    async def renew(self) -> None:
        """Issues a new one now."""
        key, public = await self._issuer.in_pool(lambda _: _generate(), None)
        signed_by = self._issuer.authority.x509().issuer.authority_id
        svid = await self._issuer.for_server(public, self._dns_names, LISTENER if self._dns_names else "")
        self._held = _Held(svid=svid, key_pem=key, signed_by=signed_by)
        self._failure = ""
        if not self._dns_names:
            _not_after.set(svid.not_after.timestamp())
        logger.info("server SVID issued", serial=str(svid.serial), not_after=svid.not_after.isoformat())
        self.on_renewed()

    async def run(self) -> None:
        """Renews when due, until cancelled; a failure is tried again with the next tick and shown in health."""
        while True:
            await self._pause()
            if self.due:
                try:
                    await self.renew()
                except BurgeeError as error:
                    if self._failure != error.detail:
                        logger.warning("server SVID cannot be renewed", reason=error.reason, detail=error.detail)
                    self._failure = error.detail

    @property
    def due(self) -> bool:
        """True from half of the time between issue and notAfter on (never counted from the backdated notBefore), and
        as soon as it hangs on a tainted authority and another one signs."""
        if self._held is None or self._is_to_be_replaced(self._held):
            return True
        lifetime = self._held.svid.lifetime
        return self._clock.now() >= lifetime.issued_at + timedelta(seconds=lifetime.granted_seconds / 2)

    async def _pause(self) -> None:
        """A tick, or less when a bundle changed."""
        sleeping = asyncio.ensure_future(self._clock.sleep(TICK_SECONDS))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()
        self._wake.clear()

    def _is_to_be_replaced(self, held: _Held) -> bool:
        tainted = [one.certificate for one in self._trust.own.x509_authorities if one.tainted]
        if not any(is_issued_by(link, authority) for link in held.svid.chain for authority in tainted):
            return False
        try:
            return self._issuer.authority.x509().issuer.authority_id != held.signed_by
        except BurgeeError:  # nothing signs now
            return False

    def check(self) -> Problem | None:
        """For ca.runtime.health."""
        now, held = self._clock.now(), self._held
        if held is not None and now < held.svid.not_after:
            return None
        ended = f"expired at {held.svid.not_after.isoformat()}, the clock here says {now.isoformat()}" if held else ""
        what = f"the server's own SVID {ended}" if ended else "the server has no SVID of its own yet"
        why = f"; a new one cannot be had: {self._failure}" if self._failure else ""
        return Problem(reason="SERVER_SVID_EXPIRED", detail=what + why, hint="agents cannot connect; see the log")


@lru_cache(maxsize=4096)
def loadable(authority: bytes) -> bool:
    """Whether OpenSSL takes this certificate (DER): one of a foreign bundle that it does not must not keep the
    listener from the others."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError):
        logger.warning("a bundle has an authority that TLS cannot use", reason="AUTHORITY_UNUSABLE")
        return False
    return True


def _generate() -> tuple[bytes, bytes]:
    """PKCS#8 PEM and SubjectPublicKeyInfo DER of a new P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
