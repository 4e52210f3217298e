"""A PKI mount of Vault or OpenBao that holds the root (or an intermediate of it) and signs this server's authorities.

Recommended for production: the root never leaves Vault, each server holds a short-lived intermediate and goes on
issuing while Vault is away, and the trust bundle holds the root alone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, StringConstraints

from ca.errors import BurgeeError, ConfigError, FailedPrecondition, InvalidArgument, Unavailable, Unimplemented
from ca.identity.bundle import JwtAuthority, X509Authority
from ca.identity.bundle_pem import parse_certificates
from ca.identity.certificate import is_issued_by, load_authority
from ca.ports import AuthorityHost, Finding, UpstreamAuthorityPlugin, UpstreamBundle, UpstreamCa
from ca.upstream.chain import MAX_CERTIFICATES, arrange
from ca.upstream.links import refused
from ca.upstream.rehearsal import USUAL_TTL_SECONDS, failure, rehearse
from ca.upstream.request import read_request
from ca.upstream.vault_check import Granted, left_behind, limit_of_mount, rights, token
from ca.vault.client import VaultClient
from ca.vault.config import Name, VaultConfig

NAME_CHARACTERS = 40

Reference = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)]
"""Name or id of an issuer."""


class VaultPkiConfig(VaultConfig):
    """Options of the vault_pki upstream."""

    mount: Name = "pki"
    """Where the PKI engine is mounted."""

    issuer: Reference | None = None
    """Which issuer of the mount signs, by name or id; by default the mount's default issuer."""

    trusted_issuers: tuple[Reference, ...] = ()
    """Issuers whose roots are in the trust bundle besides the signing one's: those that will sign next."""

    max_path_length: Annotated[int, Field(ge=0, le=10)] | None = None
    """How many authorities may stand below this server's; 0 forbids servers downstream of it. By
    default as many as the issuer allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signed:
    """`serial` is the number by which Vault knows the certificate."""

    answer: UpstreamCa
    serial: str
    granted: Granted


class VaultPkiUpstream:
    """Implements ca.ports.UpstreamAuthority and ca.ports.Connected. Errors of the way to Vault have VAULT_* reasons."""

    def __init__(self, config: VaultPkiConfig, host: AuthorityHost) -> None:
        self._config = config
        self._host = host
        self._client = VaultClient(config, clock=host.clock, purpose="upstream")
        self._signing = config.issuer or "default"
        self._started = False
        self._closed = False
        self._failure: BurgeeError | None = None
        self._ttl_seconds = USUAL_TTL_SECONDS
        self._granted: Granted | None = None

    async def mint(self, csr: bytes, ttl_seconds: int) -> UpstreamCa:
        self._ttl_seconds = ttl_seconds
        signed = await self._signed(csr, ttl_seconds)
        self._granted = signed.granted
        return signed.answer

    async def bundle(self) -> UpstreamBundle:
        try:
            _, roots = await self._mount()
        except BurgeeError as error:
            self._failure = error
            raise
        self._failure = None
        return UpstreamBundle(x509_authorities=tuple(X509Authority(certificate=der) for der in roots))

    async def publish_jwt_key(self, key: JwtAuthority) -> Sequence[JwtAuthority]:
        raise Unimplemented("a PKI mount keeps no JWT authorities", reason="UPSTREAM_NO_JWT")

    async def check(self) -> Sequence[Finding]:
        try:
            await self._log_in()
            found = [await token(self._client, by_file=self._config.auth.token_file is not None)]
        except BurgeeError as error:
            return (failure("log-in", error),)
        serials: list[str] = []

        async def mint(csr: bytes, ttl_seconds: int) -> UpstreamCa:
            signed = await self._signed(csr, ttl_seconds)
            serials.append(signed.serial)
            return signed.answer

        found += (await rehearse(mint, self._host, ttl_seconds=self._ttl_seconds)).findings
        mount = self._config.mount
        found += await rights(self._client, mount)
        found.append(await limit_of_mount(self._client, mount, ttl_seconds=self._ttl_seconds, granted=self._granted))
        return (*found, await left_behind(self._client, mount, serials))

    async def start(self) -> None:
        """The log-in alone can be our own mistake; whatever else it is may be made good in Vault."""
        self._started = True
        await self._client.start()
        try:
            await self.bundle()
        except BurgeeError as error:
            raise Unavailable(error.detail, reason=error.reason, hint=error.hint) from error

    async def run(self) -> None:
        await self._client.run()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._client.close()

    def problem(self) -> BurgeeError | None:
        return self._client.problem() or self._failure

    async def _log_in(self) -> None:
        """For who does not `start` first, as a check from the command line."""
        if not self._started:
            try:
                await self._client.start()
            except ConfigError as error:
                raise Unavailable(error.detail, reason=error.reason, hint=error.hint) from error
            self._started = True

    async def _signed(self, csr: bytes, ttl_seconds: int) -> _Signed:
        request = read_request(csr).public_bytes(Encoding.PEM).decode()
        await self._log_in()
        above, roots = await self._mount()
        asked_seconds = self._within(ttl_seconds, above, roots)
        data = await self._client.write(self._path(), self._wanted(request, asked_seconds))
        names = ("certificate", "issuing_ca", "ca_chain")
        certificate, chain, _ = await asyncio.to_thread(_arranged, data, names, (*above, *roots))
        lasts = load_authority(certificate).not_valid_after_utc - self._host.clock.now()
        return _Signed(
            answer=UpstreamCa(chain=(certificate, *chain), roots=roots),
            serial=str(data.get("serial_number", "")),
            granted=Granted(asked_seconds=asked_seconds, got_seconds=int(lasts.total_seconds())),
        )

    def _path(self) -> str:
        issuer = self._config.issuer
        return f"{self._config.mount}/{'root' if issuer is None else f'issuer/{issuer}'}/sign-intermediate"

    def _wanted(self, request: str, ttl_seconds: int) -> dict[str, Any]:
        """Nothing is left to the request (`use_csr_values`) or to Vault's defaults: its TTL would be a month."""
        name = f"{self._host.server[:NAME_CHARACTERS]} {secrets.token_hex(8)}"
        wanted: dict[str, Any] = {
            "csr": request,
            "format": "pem",
            "use_csr_values": False,
            "common_name": name,  # one of its own for each: verifiers find issuers by their names
            "exclude_cn_from_sans": True,
            "organization": "SPIFFE",
            "country": "US",
            "uri_sans": str(self._host.trust_domain.id),
            "ttl": f"{ttl_seconds}s",
        }
        if self._config.max_path_length is not None:
            wanted["max_path_length"] = self._config.max_path_length
        return wanted

    def _within(self, ttl_seconds: int, above: Sequence[bytes], roots: Sequence[bytes]) -> int:
        """The TTL, cut at the first end above: Vault itself signs intermediates that outlive their issuer."""
        ends = [load_authority(der).not_valid_after_utc for der in above]
        if above[-1] not in roots:
            signers = [load_authority(root) for root in roots if is_issued_by(above[-1], root)]
            ends += [max(root.not_valid_after_utc for root in signers)] if signers else []
        left = int((min(ends) - self._host.clock.now()).total_seconds())
        if left <= 0:
            raise FailedPrecondition(
                f"the issuer `{self._signing}` of the mount `{self._config.mount}`, or one above it, has expired",
                reason="UPSTREAM_EXPIRED",
                hint="renew it in Vault; or is one of the two clocks wrong?",
            )
        return min(ttl_seconds, left)

    async def _mount(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """(the signing issuer and what is above it, with the root only where that is the issuer; all trusted roots)."""
        await self._log_in()
        own, own_roots = await self._issuer(self._signing)
        roots = dict.fromkeys(own_roots)
        for reference in self._config.trusted_issuers:
            roots |= dict.fromkeys((await self._issuer(reference))[1])
        return own, tuple(roots)

    async def _issuer(self, reference: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """One issuer and what leads from it up; and the roots of its chain."""
        path = f"{self._config.mount}/issuer/{reference}/json"
        data = await self._client.read(path)
        if data is None:
            raise Unavailable(
                f"vault has no issuer `{reference}` at the mount `{self._config.mount}`",
                reason="UPSTREAM_ROOT_MISSING",
                hint="is `mount` right, and was a root generated or imported there?",
            )
        certificate, above, roots = await asyncio.to_thread(_arranged, data, ("certificate", "ca_chain"))
        if not roots:
            raise FailedPrecondition(
                f"the mount `{self._config.mount}` has no root above its issuer `{reference}`",
                reason="UPSTREAM_ROOT_MISSING",
                hint=f"import the root's certificate there: `{self._config.mount}/issuers/import/cert`",
            )
        return (certificate, *above), roots


def _arranged(
    data: Mapping[str, Any], names: Sequence[str], known: Sequence[bytes] = ()
) -> tuple[bytes, tuple[bytes, ...], tuple[bytes, ...]]:
    """(the first certificate under these names, what is above it without the root, all roots). It takes time."""
    certificate, *others = _certificates(data, *names)
    return certificate, *arrange(certificate, (*others, *known))


def _certificates(data: Mapping[str, Any], *names: str) -> list[bytes]:
    """DER of all that is PEM under these names, texts or lists of them. Raises FailedPrecondition."""
    found: list[bytes] = []
    try:
        for name in names:
            value = data.get(name) or []
            for text in [value] if isinstance(value, str) else value:
                found += parse_certificates(text)
        if len(found) > MAX_CERTIFICATES:
            raise refused(f"it holds more than {MAX_CERTIFICATES} certificates", "UPSTREAM_CHAIN_TOO_LONG")
        for der in found:
            load_authority(der)
    except (InvalidArgument, TypeError) as error:
        raise _malformed() from error
    if not found or not data.get(names[0]):
        raise _malformed()
    return found


def _malformed() -> FailedPrecondition:
    return FailedPrecondition("vault's answer holds no certificates", reason="UPSTREAM_CHAIN_MALFORMED")


plugin = UpstreamAuthorityPlugin(name="vault_pki", config=VaultPkiConfig, upstream=VaultPkiUpstream)
