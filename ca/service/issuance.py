"""Issues SVIDs: verify the request, prepare, record durably, sign, re-check. Crypto runs in a small thread pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, ParamSpec, TypeVar

from ca.errors import BurgeeError, InvalidArgument, Unavailable
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, TrustDomain, server_id
from ca.issuing.csr import Csr, parse_csr
from ca.issuing.lifetime import Lifetime, plan_lifetime
from ca.issuing.profile import AGENT, ISTIO, SERVER, minted
from ca.issuing.spki import read_public_key
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import finish_all, sign_many
from ca.ports import BatchSigner, Clock, Signer, ThreadedSigner
from ca.runtime import log, metrics
from ca.service.issuance_jobs import IssuedX509, Job, entry_job, issued_of, prepare, record_of, sign
from ca.service.signing import Authority, X509Signing, refuse_in_vain
from ca.store.issuance import IssuanceLog
from ca.store.values import IssuanceRecord

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

logger = log.get("issuance")

_issued = metrics.counter("issued", "SVIDs issued, by kind.", ["kind"])
_issued_of = {kind: _issued.labels(kind) for kind in ("x509", "jwt", "ca")}
_failed = metrics.counter("issue_failed", "SVIDs refused, by reason code.", ["kind", "reason"])
_capped = metrics.counter("issue_capped", "SVIDs whose life was cut short, by reason code.", ["kind", "reason"])

SMALLEST_CHUNK = 16
"""Requests that are not worth a second thread."""

REMOTE_CHUNK = 125
"""Signatures in one request to a key that is elsewhere."""

WAITING_WORKERS = 8
"""Such requests under way at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueSettings:
    """Lifetimes where a request or an entry names none, in seconds; `server` is this server's name in records."""

    trust_domain: TrustDomain
    server: str
    x509_svid_ttl_seconds: int
    jwt_svid_ttl_seconds: int
    agent_ttl_seconds: int
    backdate_seconds: int
    jwt_issuer: str | None = None


class WorkloadRequest(NamedTuple):
    """One CSR (DER) for an entry that the calling agent may serve."""

    entry: RegistrationEntry
    csr: bytes


class EntryRequest(NamedTuple):
    """One CSR (DER) of somebody without an agent; `requester` stands in the record in place of one."""

    requester: str
    entry: RegistrationEntry
    csr: bytes
    ttl_seconds: int


class Issuer:
    """Everything this server signs as an SVID goes through here."""

    def __init__(
        self,
        *,
        settings: IssueSettings,
        authority: Authority,
        records: IssuanceLog,
        clock: Clock,
        pool: ThreadPoolExecutor,
        workers: int = 2,
    ) -> None:
        self.settings = settings
        self.authority = authority
        self._records = records
        self._clock = clock
        self._pool = pool
        self._workers = workers
        self._waiting = ThreadPoolExecutor(max_workers=WAITING_WORKERS, thread_name_prefix="remote-signer")

    async def verify_csr(self, request: bytes) -> Csr:
        """Checks the proof of possession. Raises InvalidArgument (CSR_*, KEY_*)."""
        return await self.in_pool(parse_csr, request)

    async def for_workloads(
        self, agent_id: SpiffeId, requests: Sequence[WorkloadRequest]
    ) -> list[IssuedX509 | BurgeeError]:
        """One outcome per request, in order. What concerns all of them (no authority, no store) is raised instead.

        Of a CSR only the key counts: ID, DNS names and lifetime are the entry's.
        """
        default, agent = self.settings.x509_svid_ttl_seconds, str(agent_id)
        jobs = [entry_job(agent, entry, request, entry.x509_svid_ttl_seconds or default) for entry, request in requests]
        return await self._issue(jobs)

    async def for_agent(self, agent_id: SpiffeId, csr: Csr) -> IssuedX509:
        """An agent's own SVID; subject and names of the CSR are ignored."""
        ttl = self.settings.agent_ttl_seconds
        return await self._issue_one(
            Job(profile=AGENT, spiffe_id=agent_id, request=csr.key, ttl_seconds=ttl, agent=str(agent_id))
        )

    async def for_token(self, requester: str, entry: RegistrationEntry, csr: Csr, ttl_seconds: int) -> IssuedX509:
        """For whoever exchanged a token; `requester` stands in the record in place of an agent."""
        return await self._issue_one(entry_job(requester, entry, csr.key, ttl_seconds))

    async def for_requesters(self, requests: Sequence[EntryRequest]) -> list[IssuedX509 | BurgeeError]:
        """As `for_workloads`, for those whom somebody else than an agent vouches for."""
        return await self._issue([entry_job(*request) for request in requests])

    async def for_account(self, requester: str, identity: SpiffeId, csr: Csr, ttl_seconds: int) -> IssuedX509:
        """For a Kubernetes service account as Istio names it; there is no entry. Of the CSR only the key counts."""
        return await self._issue_one(
            Job(profile=ISTIO, spiffe_id=identity, request=csr.key, ttl_seconds=ttl_seconds, agent=requester)
        )

    async def for_server(
        self, public_key_der: bytes, dns_names: tuple[str, ...] = (), requester: str = ""
    ) -> IssuedX509:
        """This server's own SVID, for a key that this process just made; `requester` for one beside its main one."""
        return await self._issue_one(
            Job(
                profile=SERVER,
                spiffe_id=server_id(self.settings.trust_domain),
                request=read_public_key(public_key_der),
                ttl_seconds=self.settings.x509_svid_ttl_seconds,
                dns_names=dns_names,
                agent=requester,
            )
        )

    async def mint_x509(self, request: bytes, ttl_seconds: int) -> IssuedX509:
        """An SVID for an administrator's CSR: its one URI, DNS names and subject. A TTL of 0 or less means the
        default, as in SPIRE. Raises InvalidArgument."""
        csr = await self.verify_csr(request)
        job = Job(
            profile=minted(csr.subject),
            spiffe_id=self._requested_id(csr),
            request=csr.key,
            ttl_seconds=ttl_seconds if ttl_seconds > 0 else self.settings.x509_svid_ttl_seconds,
            dns_names=tuple(dict.fromkeys(csr.dns_names)),
        )
        return await self._issue_one(job)

    async def in_pool(self, work: Callable[[T], R], argument: T) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, argument)

    async def waiting_for(self, signer: Signer, work: Callable[[T], R], argument: T) -> R:
        """What waits for a signer elsewhere has threads of its own, so that those that compute are never all taken: the
        signer's where it has some, for the way through one of ours would be a switch more."""
        threads = signer.executor if isinstance(signer, ThreadedSigner) else self._waiting
        return await asyncio.get_running_loop().run_in_executor(threads, work, argument)

    def now(self) -> datetime:
        return self._clock.now()

    async def record(self, records: Sequence[IssuanceRecord]) -> None:
        await self._records.append(records)

    def _requested_id(self, csr: Csr) -> SpiffeId:
        if not csr.uri_sans:
            raise InvalidArgument("CSR URI SAN is required", reason="CSR_URI_MISSING")
        if len(csr.uri_sans) > 1:
            raise InvalidArgument("only one URI SAN is expected", reason="CSR_URI_MANY")
        try:
            return SpiffeId.parse(csr.uri_sans[0])
        except InvalidArgument as error:
            error.detail = f"CSR URI SAN is invalid: {error.detail}"
            raise

    async def _issue_one(self, job: Job) -> IssuedX509:
        (outcome,) = await self._issue([job])
        if isinstance(outcome, BurgeeError):
            raise outcome
        return outcome

    async def _issue(self, jobs: Sequence[Job]) -> list[IssuedX509 | BurgeeError]:
        """A key that is elsewhere is asked for some signatures while other requests are verified: in chunks."""
        if not jobs:
            return []
        signing = self.authority.x509()
        refuse_in_vain(signing)
        now = self._clock.now()
        lifetimes = {ttl: self._lifetime(now, ttl, signing) for ttl in {job.ttl_seconds for job in jobs}}
        size = REMOTE_CHUNK if isinstance(signing.signer, BatchSigner) else len(jobs)
        chunks = [jobs[at : at + size] for at in range(0, len(jobs), size)]
        done = await _all([self._issue_chunk(chunk, lifetimes, signing) for chunk in chunks])
        outcomes = done[0] if len(done) == 1 else [outcome for chunk in done for outcome in chunk]
        if all(isinstance(outcome, Unavailable) for outcome in outcomes):
            raise next(
                outcome for outcome in outcomes if isinstance(outcome, Unavailable)
            )  # nobody's fault, everybody's
        self._report(jobs, outcomes)
        return outcomes

    async def _issue_chunk(
        self, jobs: Sequence[Job], lifetimes: dict[int, Lifetime], signing: X509Signing
    ) -> list[IssuedX509 | BurgeeError]:
        """Prepare all, record all that passed, then sign: nothing is signed that is not on record."""
        if len(jobs) == 1 and not isinstance(jobs[0].request, bytes):  # nothing to verify: no work for a thread
            prepared = prepare(jobs, lifetimes, signing)
        else:
            prepared = await self._spread(lambda some: prepare(some, lifetimes, signing), jobs)
        ready = [(job, item) for job, item in zip(jobs, prepared, strict=True) if isinstance(item, IssuanceToken)]
        await self._records.append([record_of(job, token, self.settings.server) for job, token in ready])
        tokens = [token for _, token in ready]
        signer = signing.signer
        if isinstance(signer, BatchSigner):
            signed = await self._sign_remotely(tokens, signer, signing)
        else:
            signed = await self._spread(lambda some: sign(some, signing), tokens)
        rest = iter(signed)
        return [next(rest) if isinstance(item, IssuanceToken) else item for item in prepared]

    async def _sign_remotely(
        self, tokens: Sequence[IssuanceToken], signer: BatchSigner, signing: X509Signing
    ) -> list[IssuedX509 | BurgeeError]:
        """One request; its signatures are verified while the next ones are under way."""
        if not tokens:
            return []
        try:
            signatures = await self.waiting_for(signer, lambda some: sign_many(some, signer), tokens)
        except Unavailable as error:
            return [error for _ in tokens]
        return await self.in_pool(
            lambda some: issued_of(some, finish_all(some, signatures, remote=signing.remote), signing), tokens
        )

    def _lifetime(self, now: datetime, ttl_seconds: int, signing: X509Signing) -> Lifetime:
        backdate = self.settings.backdate_seconds
        return plan_lifetime(now, ttl_seconds, ttl_seconds, signing.issuer.not_after, backdate)

    async def _spread(self, work: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
        """The items in as many pieces as there are threads; small batches stay in one."""
        if not items:
            return []
        size = max(SMALLEST_CHUNK, -(-len(items) // self._workers))
        pieces = [items[at : at + size] for at in range(0, len(items), size)]
        results = await _all([self.in_pool(work, piece) for piece in pieces])
        return results[0] if len(results) == 1 else [item for piece in results for item in piece]

    def _report(self, jobs: Sequence[Job], outcomes: Sequence[IssuedX509 | BurgeeError]) -> None:
        """One line for each way in which lives were cut short, however many they were."""
        capped: dict[str, list[int]] = {}
        issued = 0
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, BurgeeError):
                count_refused("x509", outcome.reason)
                continue
            issued += 1
            if outcome.lifetime.caps:
                capped.setdefault(outcome.lifetime.caps[0].reason, []).append(job.ttl_seconds)
        count_issued("x509", issued)
        report_caps("x509", capped)


async def _all(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """At once; one alone needs no task."""
    return [await parts[0]] if len(parts) == 1 else await asyncio.gather(*parts)


def report_caps(kind: str, capped: dict[str, list[int]]) -> None:
    """Counts and logs lives that were cut short: reason code → the seconds that were asked for."""
    for reason, asked in capped.items():
        _capped.labels(kind, reason).inc(len(asked))
        logger.info("life cut short", kind=kind, reason=reason, count=len(asked), longest_asked_seconds=max(asked))


def count_issued(kind: str, count: int = 1) -> None:
    _issued_of[kind].inc(count)


def count_refused(kind: str, reason: str) -> None:
    _failed.labels(kind, reason).inc()
