"""SVIDs for workloads that somebody whom we believe vouches for: the entries decide, as they do for an agent's.

Whoever vouches says which agent would serve the workload, what its node has and what the workload has. The agent need
not exist; if it does and is banned, its node gets nothing this way either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ca.errors import BurgeeError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SERVER_PATH, SpiffeId
from ca.identity.text import quote
from ca.service.issuance import EntryRequest, Issuer, count_refused
from ca.service.issuance_jobs import IssuedX509
from ca.service.peers import AgentTable
from ca.store.authorized import AuthorizedIndex
from ca.store.rows import shared_selector


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


Servable = dict[tuple[SpiffeId, frozenset[Selector]], Sequence[RegistrationEntry]]
Outcome = tuple[RegistrationEntry, IssuedX509] | BurgeeError


class VouchedIssuer:
    """Finds the entries, then issues."""

    def __init__(self, *, index: AuthorizedIndex, agents: AgentTable, issuer: Issuer) -> None:
        self._index = index
        self._agents = agents
        self._issuer = issuer

    async def issue(self, batch: Sequence[tuple[Vouched, bytes]]) -> list[Outcome]:
        """One outcome for each request and its CSR, in order: the entry and the SVID, or InvalidArgument (CSR_*, KEY_*,
        TTL_OUT_OF_RANGE), Denied (AGENT_BANNED, VOUCHED_NO_ENTRY, VOUCHED_AMBIGUOUS), FailedPrecondition
        ENTRY_TTL_SHORT, Unavailable AUTHORITY_EXPIRES. What concerns all of them is raised."""
        servable: Servable = {}
        found = [self._entitled(wanted, csr, servable) for wanted, csr in batch]
        ready = [one for one in found if isinstance(one, EntryRequest)]
        issued = iter(await self._issuer.for_requesters(ready))
        return [_joined(one, next(issued)) if isinstance(one, EntryRequest) else one for one in found]

    def _entitled(self, wanted: Vouched, csr: bytes, servable: Servable) -> EntryRequest | BurgeeError:
        try:
            self._refuse_banned(wanted.agent_id)
            entry = self._entry(wanted, self._servable(wanted, servable))
            return EntryRequest(wanted.requester, entry, csr, self._ttl(entry, wanted))
        except BurgeeError as error:
            count_refused("x509", error.reason)
            return error

    def _refuse_banned(self, agent_id: SpiffeId) -> None:
        agent = self._agents.get(agent_id)
        if agent is not None and agent.banned:
            raise Denied(
                f"the agent `{agent_id}` is banned, and with it its node",
                reason="AGENT_BANNED",
                hint="an administrator can evict it to lift the ban",
            )

    def _servable(self, wanted: Vouched, known: Servable) -> Sequence[RegistrationEntry]:
        """Looked up once for all that come from one node at a time."""
        node = wanted.agent_id, wanted.agent_selectors
        found = known.get(node)
        if found is None:
            found = known[node] = [one for one in self._index.servable(*node) if one.selectors and not _is_alias(one)]
        return found

    def _entry(self, wanted: Vouched, servable: Sequence[RegistrationEntry]) -> RegistrationEntry:
        held = frozenset(shared_selector(one.type, one.value) for one in wanted.selectors)
        fitting = [one for one in servable if one.selectors <= held]
        chosen = [entry for entry in fitting if wanted.spiffe_id in (None, entry.spiffe_id)]
        if not chosen:
            raise _no_entry(wanted, servable, fitting)
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


def _is_alias(entry: RegistrationEntry) -> bool:
    """Of nodes: no workload's."""
    return entry.parent_id.path == SERVER_PATH


def _joined(request: EntryRequest, issued: IssuedX509 | BurgeeError) -> Outcome:
    return issued if isinstance(issued, BurgeeError) else (request.entry, issued)


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
