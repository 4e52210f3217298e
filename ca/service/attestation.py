"""Node attestation: from evidence to an agent's SVID, in an order that wastes nothing and trusts nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ca.errors import BurgeeError, Denied, FailedPrecondition, Internal, InvalidArgument
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import AGENT_PREFIX, SpiffeId, TrustDomain
from ca.identity.text import quote
from ca.ports import AttestedNode, Challenge, Clock, JoinToken, NodeAttestorPlugin, NodeVerifier
from ca.runtime import log, plugins
from ca.runtime.config import from_values
from ca.service.attestation_ring import Attempt, AttestationRing
from ca.service.issuance import Issuer
from ca.service.issuance_jobs import IssuedX509
from ca.service.peers import AgentTable
from ca.service.rates import TokenBuckets
from ca.service.trust import Trust
from ca.store.agents import already_attested
from ca.store.store import Store
from ca.store.values import AttestedAgent

logger = log.get("attestation")

MAX_VERSION_CHARACTERS = 255

_attesting_key: ContextVar[bytes | None] = ContextVar("burgee_attesting_key", default=None)
"""SHA-256 of the public key in the CSR of the attestation that runs now; its possession has been proven."""
VERSIONS_AT_ONCE = 3

NAMED_BY_EVIDENCE = "join_token"
"""The method whose evidence is used up and is the agent's name: nobody can come with other evidence for that agent."""

LOST_ANSWER = timedelta(minutes=5)
"""How long the same key may attest again with evidence that serves once; certificates begin a little before now."""


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """The outcome handed to the agent."""

    svid: IssuedX509
    reattestable: bool


class Host:
    """Implements ca.ports.NodeHost over the store."""

    def __init__(self, trust: Trust, store: Store, clock: Clock) -> None:
        self._trust = trust
        self._store = store
        self._clock = clock

    @property
    def trust_domain(self) -> TrustDomain:
        return self._trust.trust_domain

    @property
    def clock(self) -> Clock:
        return self._clock

    async def trust_bundle(self) -> TrustBundle:
        return self._trust.own

    async def consume_join_token(self, value: str) -> JoinToken:
        return await self._store.tokens.consume(value, self._clock.now(), key_sha256=_attesting_key.get())

    async def use_once(self, kind: str, key: str, until: datetime) -> None:
        await self._store.evidence.use(kind, key, until, now=self._clock.now(), key_sha256=_attesting_key.get())


def load_verifiers(configs: Mapping[str, Mapping[str, Any]], host: Host) -> dict[str, NodeVerifier]:
    """The configured node attestors, found by entry point. Raises ConfigError for an unknown name or a bad config."""
    verifiers: dict[str, NodeVerifier] = {}
    for name, config in configs.items():
        plugin = plugins.load(plugins.NODE_ATTESTORS, name, NodeAttestorPlugin)
        settings = from_values(config, plugin.server_config, name=f"node_attestors.{name}")
        verifiers[name] = plugin.verifier(settings, host)
    return verifiers


class NodeAttestation:
    """Attests, renews, evicts and bans agents."""

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        verifiers: Mapping[str, NodeVerifier],
        store: Store,
        issuer: Issuer,
        agents: AgentTable,
        clock: Clock,
    ) -> None:
        self._trust_domain = trust_domain
        self._verifiers = verifiers
        self._store = store
        self._issuer = issuer
        self._agents = agents
        self._clock = clock
        self.ring = AttestationRing(clock)
        self._versions = TokenBuckets(per_second=1 / 60, burst_seconds=60 * VERSIONS_AT_ONCE)

    @property
    def verifiers(self) -> Mapping[str, NodeVerifier]:
        """Those that are configured, by name."""
        return self._verifiers

    async def attest(self, *, kind: str, payload: bytes, csr: bytes, challenge: Challenge) -> Attestation:
        """CSR proof of possession, then the evidence, then the ban, then the SVID; what comes first costs nothing
        that comes later. Raises FailedPrecondition for an unknown attestor, what the verifier raises, or Denied.

        Whoever answers the agent lets the follower catch up first: then memory knows the agent, and its entries.
        """
        with self.ring.attempt(kind) as attempt:
            return await self._attest(kind, payload, csr, challenge, attempt)

    async def _attest(
        self, kind: str, payload: bytes, csr: bytes, challenge: Challenge, attempt: Attempt
    ) -> Attestation:
        verifier = self._verifiers.get(kind)
        if verifier is None:
            raise FailedPrecondition(
                f"no node attestor of type {quote(kind[:64])} is configured here",
                reason="NODE_ATTESTOR_UNKNOWN",
                hint=f"configured: {', '.join(sorted(self._verifiers)) or 'none'}",
            )
        request = await self._issuer.verify_csr(csr)
        # A used token serves the same key again for a while: the answer may have been lost on its way.
        _attesting_key.set(hashlib.sha256(request.key.der).digest())
        node = await self._verify(verifier, kind, payload, challenge)
        agent_id = attempt.agent_id = self._agent_id(kind, node)
        self._refuse_banned(agent_id)
        serves_again = node.reattestable or kind == NAMED_BY_EVIDENCE
        successor_of = None if serves_again else await self._first_use(agent_id, request.key.der)
        svid = await self._issuer.for_agent(agent_id, request)
        await self._remember(agent_id, kind, node, svid, successor_of)
        logger.info("agent attested", spiffe_id=str(agent_id), attestor=kind, not_after=svid.not_after.isoformat())
        return Attestation(svid=svid, reattestable=node.reattestable)

    async def renew(self, agent: AttestedAgent, csr: bytes) -> IssuedX509:
        """A new SVID for an attested agent; it becomes the current one when it is first used."""
        if agent.reattestable:
            raise Denied("agent must reattest instead of renew", reason="AGENT_MUST_REATTEST", hint="attest again")
        request = await self._issuer.verify_csr(csr)
        svid = await self._issuer.for_agent(agent.id, request)
        await self._store.agents.set_pending(agent.id, str(svid.serial), svid.not_after)
        await self._agents.refresh(agent.id)
        return svid

    async def post_status(self, agent: AttestedAgent, version: str) -> None:
        """Keeps the agent's version; the empty one leaves what is there.

        One that changes all the time is written once a minute, after a few that an upgrade and its undoing may need.
        """
        if len(version) > MAX_VERSION_CHARACTERS:
            raise InvalidArgument(
                f"agent version is longer than {MAX_VERSION_CHARACTERS} characters", reason="AGENT_VERSION"
            )
        if not version.isprintable():  # terminals would obey it
            raise InvalidArgument(f"agent version {quote(version)} is not printable", reason="AGENT_VERSION")
        if version in ("", agent.agent_version):
            return
        if not self._versions.take(agent.id, 1, self._clock.monotonic()):
            await self._store.agents.set_version(agent.id, version)
            await self._agents.refresh(agent.id)

    async def ban(self, agent_id: SpiffeId) -> None:
        """Refused from now on, and on every later attestation, until evicted. Raises NotFound."""
        await self._store.agents.ban(agent_id)
        await self._agents.refresh(agent_id)
        logger.info("agent banned", spiffe_id=str(agent_id), reason="AGENT_BANNED")

    async def evict(self, agent_id: SpiffeId) -> None:
        """Forgotten: it may attest again. Also lifts a ban. Raises NotFound."""
        await self._store.agents.delete(agent_id)
        await self._agents.refresh(agent_id)
        logger.info("agent evicted", spiffe_id=str(agent_id), reason="AGENT_EVICTED")

    async def _verify(self, verifier: NodeVerifier, kind: str, payload: bytes, challenge: Challenge) -> AttestedNode:
        try:
            return await verifier.verify(payload, challenge)
        except BurgeeError as error:
            logger.info("node attestation failed", attestor=kind, reason=error.reason, detail=error.detail)
            raise

    def _agent_id(self, kind: str, node: AttestedNode) -> SpiffeId:
        """An attestor vouches for nodes of its own namespace only."""
        if not node.path.startswith(f"{AGENT_PREFIX}{kind}/"):
            raise Internal(f"node attestor `{kind}` answered with a path outside its namespace", reason="ATTESTOR_PATH")
        return SpiffeId.of(self._trust_domain, node.path)

    def _refuse_banned(self, agent_id: SpiffeId) -> None:
        known = self._agents.get(agent_id)
        if known is not None and known.banned:
            raise _banned()

    async def _first_use(self, agent_id: SpiffeId, key_der: bytes) -> str:
        """Evidence that anybody on the node can read proves a node once: trust on first use. The serial that the new
        SVID may take the place of: none, or the one given to the same key a moment ago, whose answer may have been
        lost on its way. Raises Denied AGENT_ALREADY_ATTESTED.
        """
        known = await self._store.agents.get(agent_id)
        if known is None:
            return ""
        now, key = self._clock.now(), hashlib.sha256(key_der).digest()
        async for page in self._store.issuance.pages(spiffe_id=str(agent_id), live_at=now):
            for record in page:
                if record.serial_or_kid == known.serial and record.key_sha256 == key:
                    return known.serial
                if record.not_before < now - LOST_ANSWER:
                    raise already_attested(agent_id)
        raise already_attested(agent_id)

    async def _remember(
        self, agent_id: SpiffeId, kind: str, node: AttestedNode, svid: IssuedX509, successor_of: str | None
    ) -> None:
        agent = AttestedAgent(
            id=agent_id,
            attestation_type=kind,
            serial=str(svid.serial),
            not_after=svid.not_after,
            selectors=node.selectors,
            reattestable=node.reattestable,
        )
        earlier = self._agents.get(agent_id)
        try:
            await self._store.agents.upsert(agent, successor_of=successor_of)
        except Denied as denied:  # since we looked
            raise (_banned() if denied.reason == "AGENT_BANNED" else denied) from denied
        if earlier is not None and earlier.serial:  # where nobody lost a state, two hold this node's evidence
            logger.info(
                "agent SVID superseded",
                reason="AGENT_SVID_SUPERSEDED",
                spiffe_id=str(agent_id),
                serial=earlier.serial,
                by=agent.serial,
            )


def _banned() -> Denied:
    """Without AGENT_BANNED's details, as SPIRE answers: the caller is nobody's agent yet."""
    return Denied("failed to attest: agent is banned", reason="BANNED", hint="an administrator can evict it")
