"""An authority from files: a certificate, its key, and what leads from it to a root.

Whoever reads the key file can make authorities of this trust domain. It is for small sites, for tests, and for an
intermediate that is short-lived and replaced from outside; a root belongs into a PKI mount or a device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import Field

from ca.errors import BurgeeError, ConfigError, FailedPrecondition, InvalidArgument, Unavailable, Unimplemented
from ca.identity.bundle import JwtAuthority, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.ports import AuthorityHost, Finding, FindingLevel, UpstreamAuthorityPlugin, UpstreamBundle, UpstreamCa
from ca.runtime import log
from ca.runtime.config import StrictModel
from ca.upstream.disk_files import FileAuthority, load_files
from ca.upstream.rehearsal import USUAL_TTL_SECONDS, rehearse
from ca.upstream.request import read_request

logger = log.get("upstream")

LOOK_SECONDS = 10.0
PASSING_REASONS = frozenset({"UPSTREAM_FILE", "UPSTREAM_KEY_MISMATCH", "UPSTREAM_EXPIRED", "UPSTREAM_NOT_YET_VALID"})
SERIAL_BITS = 127

_CA = x509.BasicConstraints(ca=True, path_length=None)
_USAGE = x509.KeyUsage(
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


class DiskUpstreamConfig(StrictModel):
    """Options of the disk upstream. The files are read again at each use: replace them at any time."""

    certificate_file: Path
    """The authority's certificate in PEM; what leads from it to the root may follow."""

    key_file: Path
    """Its private key in PEM, EC (P-256, P-384, P-521) or RSA, unencrypted; ours alone (mode 0600)."""

    chain_file: Path | None = None
    """Intermediates and roots in PEM, in any order; needed unless the certificate is a root or is followed by them."""

    backdate_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    """How far notBefore of what is signed lies in the past, for clocks that are behind."""


class DiskUpstream:
    """Implements ca.ports.UpstreamAuthority and ca.ports.Connected.

    Files that cannot be read are Unavailable (UPSTREAM_FILE), for they may be about to be replaced; contents that will
    not do are FailedPrecondition.
    """

    def __init__(self, config: DiskUpstreamConfig, host: AuthorityHost) -> None:
        self._files = (config.certificate_file, config.key_file, config.chain_file)
        self._backdate = timedelta(seconds=config.backdate_seconds)
        self._host = host
        self._ttl_seconds = USUAL_TTL_SECONDS
        self._problem: BurgeeError | None = None
        self._seen: bytes | None = None

    async def mint(self, csr: bytes, ttl_seconds: int) -> UpstreamCa:
        self._ttl_seconds = ttl_seconds
        return await self._signed(csr, ttl_seconds)

    async def bundle(self) -> UpstreamBundle:
        authority = await asyncio.to_thread(load_files, *self._files)
        return UpstreamBundle(x509_authorities=tuple(X509Authority(certificate=der) for der in authority.roots))

    async def publish_jwt_key(self, key: JwtAuthority) -> Sequence[JwtAuthority]:
        raise Unimplemented("the disk upstream keeps no JWT authorities", reason="UPSTREAM_NO_JWT")

    async def check(self) -> Sequence[Finding]:
        done = await rehearse(self._signed, self._host, ttl_seconds=self._ttl_seconds)
        kept = Finding(what="left behind", level=FindingLevel.OK, detail="nothing: the files are only read")
        return (*done.findings, kept)

    async def start(self) -> None:
        """A rehearsal. What is missing, expired or being replaced may pass, and the server has an authority for now."""
        done = await rehearse(self._signed, self._host, ttl_seconds=self._ttl_seconds)
        if done.error is not None:
            kind = Unavailable if done.error.reason in PASSING_REASONS else ConfigError
            raise kind(done.error.detail, reason=done.error.reason, hint=done.error.hint) from done.error

    async def run(self) -> None:
        while True:
            await self._look()
            await self._host.clock.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Nothing is open."""

    def problem(self) -> BurgeeError | None:
        return self._problem

    async def _look(self) -> None:
        """Reads the files as the next use will, and says when they changed."""
        try:
            authority = await asyncio.to_thread(load_files, *self._files)
            self._problem = None if authority.not_after > self._host.clock.now() else _expired(authority.not_after)
        except BurgeeError as error:
            self._problem = error
            return
        seen = authority.certificate.public_bytes(Encoding.DER)
        if self._seen not in (None, seen):
            logger.info("upstream certificate replaced", not_after=authority.not_after.isoformat())
        self._seen = seen

    async def _signed(self, csr: bytes, ttl_seconds: int) -> UpstreamCa:
        return await asyncio.to_thread(self._sign, read_request(csr), ttl_seconds)

    def _sign(self, request: x509.CertificateSigningRequest, ttl_seconds: int) -> UpstreamCa:
        authority = load_files(*self._files)
        now = self._host.clock.now().replace(microsecond=0)
        not_after = min(now + timedelta(seconds=ttl_seconds), authority.not_after)
        if not_after <= now:
            raise _expired(authority.not_after)
        certificate = _sign(
            request,
            authority,
            self._host.trust_domain,
            not_before=now - self._backdate,
            not_after=not_after,
        )
        return UpstreamCa(chain=(certificate, *authority.above), roots=authority.roots)


def _sign(
    request: x509.CertificateSigningRequest,
    authority: FileAuthority,
    trust_domain: TrustDomain,
    *,
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """Of the request only the key counts. Subject, extensions and their order are those of authorities of our own."""
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise InvalidArgument("CSR is for a key of no type that signs SVIDs", reason="KEY_ALGORITHM")
    serial = x509.random_serial_number() >> (160 - SERIAL_BITS) or 1
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIFFE"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial)),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .subject_name(subject)
        .issuer_name(authority.certificate.subject)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .public_key(key)
        .add_extension(_USAGE, critical=True)
        .add_extension(_CA, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_key_identifier(authority), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))]), critical=False
        )
    )
    return builder.sign(authority.key, authority.digest).public_bytes(Encoding.DER)


def _key_identifier(authority: FileAuthority) -> x509.AuthorityKeyIdentifier:
    """As the authority's own certificate names its key (RFC 5280 §4.2.1.1)."""
    try:
        found = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _expired(not_after: datetime) -> FailedPrecondition:
    return FailedPrecondition(
        f"the authority in the files, or one above it, expired at {not_after.isoformat()}",
        reason="UPSTREAM_EXPIRED",
        hint="replace it: the files are read again at each use",
    )


def _ends(config: DiskUpstreamConfig) -> datetime | None:
    """Of the files, where they can be read: a configuration may be checked on another machine, or by another user."""
    try:
        return load_files(config.certificate_file, config.key_file, config.chain_file).not_after
    except (Unavailable, PermissionError):
        return None


plugin = UpstreamAuthorityPlugin(name="disk", config=DiskUpstreamConfig, upstream=DiskUpstream, ends=_ends)
