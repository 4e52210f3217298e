"""A rotation over a real store, with keys, a guard and an upstream that tests hold in their hands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca.authority.state import Authority, AuthorityKind, AuthorityState, find
from ca.errors import Unimplemented
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority, authority_id
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Finding, KeyManager, KeyType, UpstreamBundle, UpstreamCa
from ca.service.follower import Follower
from ca.service.peers import AgentTable
from ca.service.rotation import AuthorityManager, RotationSettings
from ca.service.rotation_guard_port import Blocker, Guard, NobodyBehind
from ca.service.trust import Trust
from ca.service.upstream_link import UpstreamLink
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store
from tests.support.clock import FakeClock

TD = TrustDomain("example.org")
TTL = 3600
SVID_TTL = TTL / 6
X509, JWT = AuthorityKind.X509, AuthorityKind.JWT


class Bench:
    """A store and an authority over it, both of which can be started anew."""

    def __init__(
        self,
        directory: Path,
        keys: KeyManager,
        *,
        upstream: FakeUpstream | None = None,
        url: str = "",
        server: str = "one",
        clock: FakeClock | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.keys = keys
        self.upstream = upstream
        self.guard: Guard = NobodyBehind()
        self.longest_seconds = SVID_TTL
        self._url = url or f"sqlite:///{directory}/s.sqlite3"
        self._server = server
        self._pool = ThreadPoolExecutor(1)
        self.store: Store
        self.trust: Trust
        self.follower: Follower
        self.authority: AuthorityManager

    async def start(self) -> None:
        await self.open()
        await self.authority.start()

    async def open(self) -> None:
        """Everything is there, and nothing has begun."""
        self.store = await Store.open(self._url, clock=self.clock)
        self.trust = Trust(TD)
        agents = AgentTable(self.store.agents)
        index = AuthorizedIndex(TD, self.clock.now)
        self.follower = Follower(store=self.store, index=index, agents=agents, trust=self.trust)
        await self.follower.load()
        link = None
        if self.upstream is not None:
            link = UpstreamLink(self.upstream, name="fake", trust_domain=TD, clock=self.clock, patience=0.02)
        self.authority = AuthorityManager(
            settings=RotationSettings(
                trust_domain=TD,
                server=self._server,
                ca_ttl_seconds=TTL,
                backdate_seconds=10,
                x509_key_type=KeyType.EC_P256,
                jwt_key_type=KeyType.EC_P256,
            ),
            store=self.store,
            keys=self.keys,
            follower=self.follower,
            guard=self.guard,
            longest_ttl=self._longest,
            clock=self.clock,
            pool=self._pool,
            upstream=link,
        )

    async def stop(self) -> None:
        await self.store.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def after(self, seconds: float) -> None:
        """Time passes, then the authority looks."""
        await self.clock.advance(seconds)
        await self.authority.tick()

    async def renew(self, kind: AuthorityKind) -> tuple[Authority, Authority]:
        """By hand: (the one that is old now, the one that is active)."""
        before = self.active(kind)
        new = await self.authority.prepare(kind)
        return before, await self.authority.activate(kind, new.authority_id)

    def active(self, kind: AuthorityKind) -> Authority:
        found = find(self.authority.authorities, AuthorityState.ACTIVE, kind)
        assert found is not None
        return found

    def row(self, one: Authority) -> Authority:
        """As it is now."""
        return next(a for a in self.authority.journal.authorities if a.authority_id == one.authority_id)

    @property
    def bundle(self) -> TrustBundle:
        return self.trust.own

    @property
    def roots(self) -> list[str]:
        return [authority_id(a.certificate) for a in self.bundle.x509_authorities]

    @property
    def kids(self) -> list[str]:
        return [a.key_id for a in self.bundle.jwt_authorities]

    @property
    def taints(self) -> set[str]:
        """What the bundle shows as tainted."""
        x509s = {authority_id(a.certificate) for a in self.bundle.x509_authorities if a.tainted}
        return x509s | {a.key_id for a in self.bundle.jwt_authorities if a.tainted}

    @property
    def signing(self) -> tuple[str, str]:
        return self.authority.x509().issuer.authority_id, self.authority.jwt().key.kid

    async def _longest(self, kind: AuthorityKind) -> timedelta:
        del kind
        return timedelta(seconds=self.longest_seconds)


class SomebodyBehind:
    """A guard whose answers are set: blockers, or an error."""

    def __init__(self, *blockers: Blocker) -> None:
        self.blockers: Sequence[Blocker] = blockers
        self.error: Exception | None = None
        self.asked = 0

    async def before_activation(self, authority: Authority) -> Sequence[Blocker]:
        return await self._answer()

    async def before_removal(self, authority: Authority) -> Sequence[Blocker]:
        return await self._answer()

    async def _answer(self) -> Sequence[Blocker]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.blockers


BEHIND = Blocker(kind="agent", who="spiffe://example.org/spire/agent/a", reason="AGENT_BEHIND", detail="has bundle 1")


class FakeUpstream:
    """An authority above. `root` names what it signs with, `between` adds an intermediate; `roots` is what it
    publishes, name → tainted. With `keeps_jwt` it keeps JWT authorities in `jwt`. `error` is raised by every call,
    `hangs` lets every call wait for ever."""

    def __init__(self, clock: FakeClock, *, keeps_jwt: bool = False, between: bool = False) -> None:
        self._clock = clock
        self._made: dict[str, tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = {}
        self.root = "r1"
        self.roots: dict[str, bool] = {"r1": False}
        self.between = between
        self.keeps_jwt = keeps_jwt
        self.jwt: dict[str, JwtAuthority] = {}
        self.error: Exception | None = None
        self.hangs = False
        self.granted_seconds: float = 10 * TTL
        self.days: dict[str, float] = {}
        self.minted = 0

    async def mint(self, csr: bytes, ttl_seconds: int) -> UpstreamCa:
        await self._called()
        self.minted += 1
        request = x509.load_der_x509_csr(csr)
        assert request.is_signature_valid
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(TD.id)]
        above = self._authority(self.root)
        chain = []
        if self.between:
            above = self._authority(f"{self.root}-between", above)
            chain.append(above[0].public_bytes(Encoding.DER))
        life = timedelta(seconds=min(ttl_seconds, self.granted_seconds))
        end = min(self._clock.now() + life, self._authority(self.root)[0].not_valid_after_utc)
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        made = self._certificate(f"ca {self.minted}", key, above, end, uri=True)
        roots = tuple(self.certificate(name) for name in self.roots)
        return UpstreamCa(chain=(made.public_bytes(Encoding.DER), *chain), roots=roots)

    async def bundle(self) -> UpstreamBundle:
        await self._called()
        x509s = tuple(X509Authority(certificate=self.certificate(n), tainted=t) for n, t in self.roots.items())
        return UpstreamBundle(x509_authorities=x509s, jwt_authorities=tuple(self.jwt.values()))

    async def publish_jwt_key(self, key: JwtAuthority) -> Sequence[JwtAuthority]:
        await self._called()
        if not self.keeps_jwt:
            raise Unimplemented("keeps none", reason="UPSTREAM_NO_JWT")
        self.jwt[key.key_id] = key
        return tuple(self.jwt.values())

    async def check(self) -> Sequence[Finding]:
        return ()

    def certificate(self, name: str) -> bytes:
        """A root's, DER; made at its first use."""
        return self._authority(name)[0].public_bytes(Encoding.DER)

    def id_of(self, name: str) -> str:
        return authority_id(self.certificate(name))

    def taint(self, kid: str) -> None:
        self.jwt[kid] = replace(self.jwt[kid], tainted=True)

    async def _called(self) -> None:
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    def _authority(
        self, name: str, above: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        if name not in self._made:
            key = ec.generate_private_key(ec.SECP256R1())
            end = self._clock.now() + timedelta(days=self.days.get(name, 100))
            self._made[name] = self._certificate(name, key.public_key(), above, end, own=key), key
        return self._made[name]

    def _certificate(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        above: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
        end: datetime,
        *,
        own: ec.EllipticCurvePrivateKey | None = None,
        uri: bool = False,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        signer = above[1] if above else own
        assert signer is not None
        issuer_key = signer.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(above[0].subject if above else subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._clock.now() - timedelta(seconds=10))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        )
        if uri:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(TD.id))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(signer, hashes.SHA256())


_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
