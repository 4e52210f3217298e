"""What a certificate is made from, and its steps in a thread: proof of possession, the bytes to be signed, signing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from ca.errors import BurgeeError, Internal
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId
from ca.issuing.csr import proven_key
from ca.issuing.lifetime import Lifetime
from ca.issuing.profile import WORKLOAD, LeafProfile
from ca.issuing.serial import SERIAL_RANDOM_BYTES, new_serial
from ca.issuing.spki import PublicKeyInfo
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import prepare_leaf, sign_all
from ca.runtime import log
from ca.service.signing import X509Signing
from ca.store.values import IssuanceRecord

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
    names, revision = entry.dns_names, entry.revision_number
    return Job(WORKLOAD, entry.spiffe_id, request, ttl_seconds, names, entry.id, revision, requester)


def prepare(
    jobs: Sequence[Job], lifetimes: dict[int, Lifetime], signing: X509Signing
) -> list[IssuanceToken | BurgeeError]:
    """In a thread: proof of possession first, then the bytes to be signed.

    All signatures are verified before the first bytes are built: verifying runs without the interpreter's lock,
    building with it, and two threads that do the one and the other by turns wait for each other.
    """
    keys = [_key(job) for job in jobs]
    return [
        _token(job, key, serial, lifetimes, signing)
        for job, key, serial in zip(jobs, keys, _serials(len(jobs)), strict=True)
    ]


def _serials(count: int) -> list[int]:
    """Serial numbers for a batch from one call to the system: each call lets the interpreter's lock go."""
    random = os.urandom(count * SERIAL_RANDOM_BYTES)
    return [new_serial(random[at : at + SERIAL_RANDOM_BYTES]) for at in range(0, len(random), SERIAL_RANDOM_BYTES)]


def _key(job: Job) -> PublicKeyInfo | BurgeeError:
    request = job.request
    if not isinstance(request, bytes):
        return request
    try:
        return proven_key(request)
    except BurgeeError as error:
        return _told(error)


def _token(
    job: Job, key: PublicKeyInfo | BurgeeError, serial: int, lifetimes: dict[int, Lifetime], signing: X509Signing
) -> IssuanceToken | BurgeeError:
    if isinstance(key, BurgeeError):
        return key
    try:
        return prepare_leaf(
            profile=job.profile,
            spiffe_id=job.spiffe_id,
            dns_names=job.dns_names,
            public_key=key,
            lifetime=lifetimes[job.ttl_seconds],
            serial=serial,
            issuer=signing.issuer,
        )
    except BurgeeError as error:
        return _told(error)


def _told(error: BurgeeError) -> BurgeeError:
    """One item's failure is its own; what is our fault is told to the log alone."""
    if not isinstance(error, Internal):
        return error
    logger.error("certificate could not be made", reason=error.reason, detail=error.detail)
    return Internal("internal error", reason=error.reason)


def record_of(job: Job, token: IssuanceToken, server: str) -> IssuanceRecord:
    """What is written down before `token` is signed; `server` is this server's name."""
    want = token.want
    return IssuanceRecord(  # by position: by name it takes twice as long
        "x509",
        str(want.serial),
        token.tbs_sha256,
        want.issuer.authority_id,
        server,
        str(want.spiffe_id),
        want.lifetime.not_before,
        want.lifetime.not_after,
        job.entry_id,
        job.entry_revision,
        job.agent,
        want.key.sha256,
    )


def sign(tokens: Sequence[IssuanceToken], signing: X509Signing) -> list[IssuedX509 | BurgeeError]:
    """In a thread."""
    return issued_of(tokens, sign_all(tokens, signing.signer, remote=signing.remote), signing)


def issued_of(
    tokens: Sequence[IssuanceToken], certificates: Sequence[bytes | BurgeeError], signing: X509Signing
) -> list[IssuedX509 | BurgeeError]:
    above = signing.chain
    return [
        _told(certificate)
        if isinstance(certificate, BurgeeError)
        else IssuedX509(token.want.spiffe_id, (certificate, *above), token.want.serial, token.want.lifetime)
        for token, certificate in zip(tokens, certificates, strict=True)
    ]
