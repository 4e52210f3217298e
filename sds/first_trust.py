"""Which server to believe: the bundle that is held, where the first one comes from, and how a stale one heals.

A bundle that arrived from a verified server replaces the held one. When a server's chain no longer verifies (the agent
slept through rotations), the configured source is read again as far as `rebootstrap` allows, and is adopted only when
the very chain that was refused verifies against it. An old copy brings nothing back: authorities that a server took out
of the bundle or tainted before their end are remembered, and no source but a verified server can list them again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from ca.errors import BurgeeError, FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from ca.identity.bundle import TrustBundle
from ca.identity.bundle_json import parse_spiffe_bundle
from ca.identity.bundle_pem import parse_pem
from ca.identity.spiffe_id import TrustDomain, server_id
from ca.identity.svid import X509Svid, check_validity, parse_x509_svid, verify_x509_svid
from ca.ports import Clock
from ca.runtime.log import get
from sds.config import AgentConfig, TrustConfig
from sds.dropped import Dropped, remember, without
from sds.state import AgentStore

MAX_BUNDLE_BYTES = 1 << 20
FETCH_TIMEOUT_SECONDS = 10.0
HEAL_INTERVAL_SECONDS = 5.0
STALE_BUNDLE_REASONS = frozenset({"SVID_UNTRUSTED", "SVID_UNTRUSTED_DOMAIN", "SVID_ISSUER_EXPIRED"})
"""Of verify_x509_svid: another bundle could make this chain verify."""

_CONTENT_HINT = (
    "the server's trust bundle belongs there, as PEM certificates or as a SPIFFE bundle (JSON): "
    "`caadmin bundle show` on the server prints it"
)

log = get("sds.trust")


class ServerTrust:
    """The own trust domain's bundle, and whether a server's chain may be believed."""

    def __init__(self, *, config: AgentConfig, clock: Clock, store: AgentStore) -> None:
        self._config = config
        self._clock = clock
        self._store = store
        self._bundle: TrustBundle | None = None
        self._dropped: tuple[Dropped, ...] = ()
        self._too_old = False
        """Whether all that the source offered the last time was what had been dropped."""
        self._loaded = False
        self._listeners: list[Callable[[], None]] = []
        self._next_heal = float("-inf")

    @property
    def bundle(self) -> TrustBundle | None:
        """None before `start` has succeeded, and with `insecure_bootstrap` until the first server gave one."""
        return self._bundle

    @property
    def trust_domain(self) -> TrustDomain:
        """The own trust domain."""
        return self._config.domain

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener` is called after the bundle was replaced."""
        self._listeners.append(listener)

    def off_change(self, listener: Callable[[], None]) -> None:
        """Ends what `on_change` began."""
        self._listeners.remove(listener)

    async def start(self) -> None:
        """The bundle that was held before, else the first-trust source. Raises what the source cannot give."""
        if not self._loaded:
            held = await asyncio.to_thread(self._store.load_trust)
            self._bundle, self._dropped = held or (None, ())
            self._loaded = True  # what was dropped on purpose must not come back from the disk
        if self._bundle is None and not self._config.trust.insecure_bootstrap:
            self._adopt(await read_source(self._config.trust, self._config.domain), "first trust")

    def update(self, bundle: TrustBundle) -> None:
        """A verified server sent this one. An empty one is refused: it would lock this agent out for good.

        While no bundle is held, no server is verified: then what was dropped stays so.
        """
        if bundle.trust_domain != self._config.domain or bundle == self._bundle:
            return
        if self._bundle is None:
            bundle = without(bundle, self._dropped)
        if not bundle.x509_authorities:
            log.warning("bundle without X.509 authorities ignored", reason="BUNDLE_EMPTY")
            return
        self._dropped = remember(self._dropped, before=self._bundle, after=bundle, now=self._clock.now())
        self._adopt(bundle, "a server")

    def vet(self, offered: TrustBundle, chain: Sequence[bytes]) -> TrustBundle:
        """What of a bundle from elsewhere may be adopted, so that a server's `chain` verifies.

        Raises Unauthenticated: BUNDLE_ROLLBACK where it has, or would verify it with, only what was dropped; else why
        the chain does not verify.
        """
        kept, now = without(offered, self._dropped), self._clock.now()
        try:
            verify_x509_svid(chain, {kept.trust_domain: kept}, now=now)
        except BurgeeError:
            if kept.x509_authorities or kept == offered:
                verify_x509_svid(chain, {offered.trust_domain: offered}, now=now)
            raise self._old_bundle() from None
        return kept

    def verify_server(self, chain: Sequence[bytes], *, first: bool = False) -> X509Svid:
        """Chain against the bundle, and the ID against the server's. Raises Unauthenticated.

        `first`: the connection may be the one that the first bundle comes from, where `insecure_bootstrap` allows that.
        """
        svid = self._authenticate(chain, first=first)
        expected = server_id(self._config.domain)
        if svid.id != expected:
            raise Unauthenticated(
                f"the peer is `{svid.id}`, not the server `{expected}`",
                reason="SERVER_ID_MISMATCH",
                hint="does `servers` name a server of this trust domain?",
            )
        return svid

    async def heal(self, error: BurgeeError, chain: Sequence[bytes]) -> bool:
        """`chain` was refused with `error`: read the source again where that is allowed and can help.

        True when the bundle was replaced, so that the next try may succeed.
        """
        if error.reason not in STALE_BUNDLE_REASONS or self._config.rebootstrap == "never":
            return False
        if self._clock.monotonic() < self._next_heal:
            return False
        self._next_heal = self._clock.monotonic() + HEAL_INTERVAL_SECONDS
        if self._config.trust.insecure_bootstrap:
            return self._start_over_insecurely()
        try:
            candidate = self.vet(await read_source(self._config.trust, self._config.domain), chain)
        except BurgeeError as problem:
            self._too_old = problem.reason == "BUNDLE_ROLLBACK"
            log.warning("first-trust source does not help", reason=problem.reason, detail=problem.detail)
            return False
        self._adopt(candidate, "the first-trust source, read again")
        return True

    def explain(self, error: BurgeeError) -> BurgeeError:
        """A refused server's error, with what an operator can do about it."""
        if error.reason not in STALE_BUNDLE_REASONS:
            return error
        if self._too_old:
            return self._old_bundle()
        return Unauthenticated(
            f"the server's certificate does not chain to the trust bundle this agent holds: {error.detail}",
            reason="SERVER_UNTRUSTED",
            hint=self._hint(),
        )

    def save(self) -> None:
        """What is held, once more: the state was erased."""
        if self._bundle is not None:
            self._save(self._bundle)

    def _old_bundle(self) -> Unauthenticated:
        return Unauthenticated(
            f"what {self._source()} offers was taken out of the trust bundle, or tainted, before its end: this agent "
            "does not go back to it",
            reason="BUNDLE_ROLLBACK",
            hint="put the server's current bundle there (`caadmin bundle show`). Only if that authority is to be "
            "trusted again: stop the agent, remove its state/bundle.sealed, and start it",
        )

    def _source(self) -> str:
        trust = self._config.trust
        if trust.insecure_bootstrap:
            return "the server that answers"
        return f"`{trust.bundle_file or trust.bundle_url}`"

    def _hint(self) -> str:
        trust = self._config.trust
        if self._config.rebootstrap == "never":
            return "set `rebootstrap: auto`, or remove the agent's state/bundle.sealed and restart it"
        if trust.insecure_bootstrap:
            return "name a `bundle_file` or `bundle_url`, or set `rebootstrap: always` to believe the next server again"
        return f"put the server's current bundle at {self._source()}: it is read again by itself"

    def _authenticate(self, chain: Sequence[bytes], *, first: bool) -> X509Svid:
        now = self._clock.now()
        if self._bundle is not None:
            return verify_x509_svid(chain, {self._bundle.trust_domain: self._bundle}, now=now)
        if not (first and self._config.trust.insecure_bootstrap):
            raise Unauthenticated("there is no trust bundle yet", reason="NO_TRUST_BUNDLE")
        svid = parse_x509_svid(chain)
        check_validity(svid, now)
        return svid

    def _start_over_insecurely(self) -> bool:
        if self._config.rebootstrap != "always":
            return False
        log.warning("trust dropped: the next server that answers is believed", reason="INSECURE_BOOTSTRAP")
        self._bundle = None
        self._tell()
        return True

    def _adopt(self, bundle: TrustBundle, source: str) -> None:
        self._bundle = bundle
        self._too_old = False
        log.info("trust bundle adopted", source=source, authorities=len(bundle.x509_authorities))
        self._save(bundle)
        self._tell()

    def _save(self, bundle: TrustBundle) -> None:
        try:
            self._store.save_bundle(bundle, self._dropped)
        except BurgeeError as error:
            log.warning("trust bundle not saved", reason=error.reason, detail=error.detail)

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()


async def read_source(trust: TrustConfig, trust_domain: TrustDomain) -> TrustBundle:
    """The bundle at the configured file or URL.

    Raises FailedPrecondition, Unavailable or InvalidArgument; each names the source.
    """
    if trust.bundle_url is not None:
        content, source = await _fetch(trust.bundle_url), trust.bundle_url
    else:
        assert trust.bundle_file is not None
        content, source = await asyncio.to_thread(_read_file, trust), str(trust.bundle_file)
    try:
        bundle = parse_bundle(content, trust_domain)
    except InvalidArgument as error:
        why = "it is empty" if not content.strip() else error.detail
        raise InvalidArgument(
            f"what is at `{source}` is no trust bundle: {why}", reason=error.reason, hint=_CONTENT_HINT
        ) from error
    if not bundle.x509_authorities:
        raise InvalidArgument(
            f"the bundle at `{source}` has no X.509 authority", reason="BUNDLE_EMPTY", hint=_CONTENT_HINT
        )
    return bundle


def parse_bundle(content: bytes, trust_domain: TrustDomain) -> TrustBundle:
    """A SPIFFE bundle (JSON) or PEM certificates, told apart by the first character. Raises InvalidArgument."""
    if content.lstrip()[:1] == b"{":
        return parse_spiffe_bundle(content, trust_domain)
    return parse_pem(content, trust_domain)


def _read_file(trust: TrustConfig) -> bytes:
    assert trust.bundle_file is not None
    try:
        with trust.bundle_file.open("rb") as file:
            content = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot read the trust bundle `{trust.bundle_file}`: {error.strerror}",
            reason="BUNDLE_SOURCE",
            hint="copy it from the server: `caadmin bundle show`",
        ) from error
    return _bounded(content, str(trust.bundle_file))


async def _fetch(url: str) -> bytes:
    import http.client  # for those who fetch

    try:
        async with asyncio.timeout(2 * FETCH_TIMEOUT_SECONDS):
            return _bounded(await asyncio.to_thread(_get, url), url)
    except (OSError, http.client.HTTPException, TimeoutError) as error:
        detail = str(error) or type(error).__name__
        raise Unavailable(f"cannot fetch the trust bundle at `{url}`: {detail}", reason="BUNDLE_SOURCE") from error


def _get(url: str) -> bytes:
    """Blocks. The URL is the operator's own (configuration), https, and redirects are not followed."""
    import http.client

    parts = urlsplit(url)
    assert parts.scheme == "https"
    assert parts.hostname
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port or 443, timeout=FETCH_TIMEOUT_SECONDS, context=ssl.create_default_context()
    )
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "application/json, application/x-pem-file"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP status {response.status}")
        return response.read(MAX_BUNDLE_BYTES + 1)
    finally:
        connection.close()


def _bounded(content: bytes, source: str) -> bytes:
    if len(content) > MAX_BUNDLE_BYTES:
        raise InvalidArgument(f"the bundle at `{source}` is larger than 1 MiB", reason="BUNDLE_TOO_LARGE")
    return content
