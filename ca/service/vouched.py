"""SVIDs for workloads that somebody whom we believe vouches for: the entries decide, as they do for an agent's.

Whoever vouches says which agent would serve the workload, what its node has and what the workload has. The agent need
not exist; if it does and is banned, its node gets nothing this way either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ca.errors import Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SERVER_PATH, SpiffeId
from ca.identity.text import quote
from ca.service.issuance import IssuedX509, Issuer
from ca.service.peers import AgentTable
from ca.store.authorized import AuthorizedIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """What is asked for, and on whose word. Bounds are seconds from notBefore to notAfter, 0 for none."""

    agent_id: SpiffeId
    agent_selectors: frozenset[Selector]
    selectors: frozenset[Selector]
    spiffe_id: SpiffeId | None
    min_seconds: int
    max_seconds: int
    requester: str


class VouchedIssuer:
    """Finds the entry, then issues."""

    def __init__(self, *, index: AuthorizedIndex, agents: AgentTable, issuer: Issuer) -> None:
        self._index = index
        self._agents = agents
        self._issuer = issuer

    async def issue(self, wanted: Vouched, csr: bytes) -> tuple[RegistrationEntry, IssuedX509]:
        """Raises InvalidArgument (CSR_*, KEY_*), Denied (AGENT_BANNED, VOUCHED_NO_ENTRY, VOUCHED_AMBIGUOUS),
        FailedPrecondition ENTRY_TTL_SHORT, Unavailable AUTHORITY_EXPIRES."""
        proven = await self._issuer.verify_csr(csr)
        agent = self._agents.get(wanted.agent_id)
        if agent is not None and agent.banned:
            raise Denied(
                f"the agent `{wanted.agent_id}` is banned, and with it its node",
                reason="AGENT_BANNED",
                hint="an administrator can evict it to lift the ban",
            )
        entry = self._entry(wanted)
        ttl = self._ttl(entry, wanted)
        return entry, await self._issuer.for_token(wanted.requester, entry, proven, ttl)

    def _entry(self, wanted: Vouched) -> RegistrationEntry:
        servable = self._index.servable(wanted.agent_id, wanted.agent_selectors)
        known = [entry for entry in servable if entry.parent_id.path != SERVER_PATH]  # aliases are for nodes
        fitting = [entry for entry in known if entry.selectors and entry.selectors <= wanted.selectors]
        chosen = [entry for entry in fitting if wanted.spiffe_id in (None, entry.spiffe_id)]
        if not chosen:
            raise _no_entry(wanted, known, fitting)
        identities = sorted({str(entry.spiffe_id) for entry in chosen})
        if len(identities) > 1:
            raise Denied(
                f"the workload is entitled to several identities: {', '.join(map(quote, identities[:8]))}",
                reason="VOUCHED_AMBIGUOUS",
                hint="say which",
            )
        # Several entries for one identity differ in lesser things: the most particular one counts.
        return max(chosen, key=lambda entry: (len(entry.selectors), entry.id))

    def _ttl(self, entry: RegistrationEntry, wanted: Vouched) -> int:
        """Seconds from now on; the life that is bounded has what lies in the past besides."""
        settings = self._issuer.settings
        own = entry.x509_svid_ttl_seconds or settings.x509_svid_ttl_seconds
        past = settings.backdate_seconds
        if own < wanted.min_seconds:
            whose = f"of entry `{entry.id}`" if entry.x509_svid_ttl_seconds else "by default"
            raise FailedPrecondition(
                f"an SVID lives {own} s {whose}, and no less than {wanted.min_seconds} s will do here",
                reason="ENTRY_TTL_SHORT",
                hint="raise `x509_svid_ttl` of the entry, or `x509_svid_ttl_seconds` of the server",
            )
        ttl = min(own, wanted.max_seconds - past) if wanted.max_seconds else own
        if ttl + past < wanted.min_seconds or ttl <= 0:
            raise InvalidArgument("no life is within these bounds", reason="TTL_OUT_OF_RANGE")
        ends = self._issuer.authority.x509().issuer.not_after
        if ends is not None and ends - self._issuer.now() < timedelta(seconds=wanted.min_seconds - past):
            raise Unavailable(
                f"the signing authority ends before an SVID of {wanted.min_seconds} s would",
                reason="AUTHORITY_EXPIRES",
                hint="its successor signs soon; a `ca_ttl_seconds` of six hours and more always leaves an hour",
            )
        return ttl


def _no_entry(wanted: Vouched, known: Sequence[RegistrationEntry], fitting: Sequence[RegistrationEntry]) -> Denied:
    """Whoever vouches is an administrator, and may know what came near."""
    if fitting:
        assert wanted.spiffe_id is not None
        named = f"`{wanted.spiffe_id}` is not among the identities of this workload"
        return Denied(named, reason="VOUCHED_NO_ENTRY", hint="its entries are for others")
    detail = f"none of {len(known)} entries that are for `{wanted.agent_id}` is for this workload"
    if known:
        near = min(known, key=lambda entry: (len(entry.selectors - wanted.selectors), entry.id))
        missing = ", ".join(quote(str(one)) for one in sorted(near.selectors - wanted.selectors)[:8])
        detail += f"; the nearest, `{near.id}`, wants besides: {missing or 'a selector at all'}"
    return Denied(detail, reason="VOUCHED_NO_ENTRY", hint="create one below that agent, or below an alias of its node")
