"""What a certificate is made from, and its steps in a thread: proof of possession, the bytes to be signed, signing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple, ParamSpec, TypeVar

from ca.errors import BurgeeError, Internal
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId
from ca.issuing.csr import parse_csr
from ca.issuing.lifetime import Lifetime
from ca.issuing.profile import WORKLOAD, LeafProfile
from ca.issuing.serial import SERIAL_RANDOM_BYTES, new_serial
from ca.issuing.spki import PublicKeyInfo
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import prepare_leaf, sign_all
from ca.runtime import log
from ca.service.signing import X509Signing

P = ParamSpec("P")
R = TypeVar("R")

logger = log.get("issuance")


class IssuedX509(NamedTuple):
    """`chain` is DER, leaf first, without the root."""

    spiffe_id: SpiffeId
    chain: tuple[bytes, ...]
    serial: int
    lifetime: Lifetime

    @property
    def not_after(self) -> datetime:
        return self.lifetime.not_after


class Job(NamedTuple):
    """One certificate to be. `request` is a CSR still to be verified, or the key from one that was.

    A tuple, like what is made of it: thousands are made a second.
    """

    profile: LeafProfile
    spiffe_id: SpiffeId
    request: bytes | PublicKeyInfo
    ttl_seconds: int
    dns_names: tuple[str, ...] = ()
    entry_id: str = ""
    entry_revision: int = 0
    agent: str = ""


def entry_job(requester: str, entry: RegistrationEntry, request: bytes | PublicKeyInfo, ttl_seconds: int) -> Job:
    return Job(
        profile=WORKLOAD,
        spiffe_id=entry.spiffe_id,
        request=request,
        ttl_seconds=ttl_seconds,
        dns_names=entry.dns_names,
        entry_id=entry.id,
        entry_revision=entry.revision_number,
        agent=requester,
    )


def prepare(
    jobs: Sequence[Job], lifetimes: dict[int, Lifetime], signing: X509Signing
) -> list[IssuanceToken | BurgeeError]:
    """In a thread: proof of possession first, then the bytes to be signed.

    All signatures are verified before the first bytes are built: verifying runs without the interpreter's lock,
    building with it, and two threads that do the one and the other by turns wait for each other.
    """
    keys = [_attempt(_key, job) for job in jobs]
    return [
        key if isinstance(key, BurgeeError) else _attempt(_token, job, key, serial, lifetimes, signing)
        for job, key, serial in zip(jobs, keys, _serials(len(jobs)), strict=True)
    ]


def _serials(count: int) -> list[int]:
    """Serial numbers for a batch from one call to the system: each call lets the interpreter's lock go."""
    random = os.urandom(count * SERIAL_RANDOM_BYTES)
    return [new_serial(random[at : at + SERIAL_RANDOM_BYTES]) for at in range(0, len(random), SERIAL_RANDOM_BYTES)]


def _key(job: Job) -> PublicKeyInfo:
    return parse_csr(job.request).key if isinstance(job.request, bytes) else job.request


def _token(
    job: Job, key: PublicKeyInfo, serial: int, lifetimes: dict[int, Lifetime], signing: X509Signing
) -> IssuanceToken:
    return prepare_leaf(
        profile=job.profile,
        spiffe_id=job.spiffe_id,
        dns_names=job.dns_names,
        public_key=key,
        lifetime=lifetimes[job.ttl_seconds],
        serial=serial,
        issuer=signing.issuer,
    )


def _attempt(step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | BurgeeError:
    """One item's failure is its own; what is our fault is told to the log alone."""
    try:
        return step(*args, **kwargs)
    except BurgeeError as error:
        return _told(error)


def _told(error: BurgeeError) -> BurgeeError:
    if not isinstance(error, Internal):
        return error
    logger.error("certificate could not be made", reason=error.reason, detail=error.detail)
    return Internal("internal error", reason=error.reason)


def sign(tokens: Sequence[IssuanceToken], signing: X509Signing) -> list[IssuedX509 | BurgeeError]:
    """In a thread."""
    return issued_of(tokens, sign_all(tokens, signing.signer, remote=signing.remote), signing)


def issued_of(
    tokens: Sequence[IssuanceToken], certificates: Sequence[bytes | BurgeeError], signing: X509Signing
) -> list[IssuedX509 | BurgeeError]:
    outcomes: list[IssuedX509 | BurgeeError] = []
    for token, certificate in zip(tokens, certificates, strict=True):
        if isinstance(certificate, BurgeeError):
            outcomes.append(_told(certificate))
            continue
        outcomes.append(
            IssuedX509(
                spiffe_id=token.spiffe_id,
                chain=(certificate, *signing.chain),
                serial=token.serial,
                lifetime=token.lifetime,
            )
        )
    return outcomes
