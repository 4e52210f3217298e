"""What every check of an upstream does: have a throw-away key signed, prove the answer, and draw the chain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from ca.errors import BurgeeError
from ca.identity.issuer import Issuer, load_issuer
from ca.identity.text import quote
from ca.ports import AuthorityHost, Finding, FindingLevel, UpstreamCa
from ca.upstream.proof import Need, ProvedCa, prove
from ca.upstream.request import make_request

REHEARSAL_SECONDS = 60
"""Life of the authority that a rehearsal makes; its key is gone before."""

USUAL_TTL_SECONDS = 86_400
"""What a chain is judged by before the server has asked for anything: `ca_ttl_seconds` unless it is configured."""

SHARE_LEFT = 10
"""A certificate above that has less than a tenth of its life left wants to be renewed."""

_NAMES = {NameOID.SERIAL_NUMBER: "serialNumber"}

Mint = Callable[[bytes, int], Awaitable[UpstreamCa]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """Its findings; what was proved where all went well, else what went wrong."""

    findings: tuple[Finding, ...]
    proved: ProvedCa | None = None
    error: BurgeeError | None = None


async def rehearse(mint: Mint, host: AuthorityHost, *, ttl_seconds: int) -> Rehearsal:
    """A signature for nobody. `ttl_seconds` is what the server usually asks for; the rehearsal asks for a minute."""
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        answer = await mint(make_request(key, host.trust_domain), REHEARSAL_SECONDS)
        proved = await asyncio.to_thread(
            prove,
            answer,
            trust_domain=host.trust_domain,
            public_key_der=key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            need=Need(ttl_seconds=REHEARSAL_SECONDS, longest_svid_seconds=0, margin_seconds=0),
            now=host.clock.now(),
        )
    except BurgeeError as error:
        return Rehearsal(findings=(failure("signing", error),), error=error)
    signed = Finding(what="signing", level=FindingLevel.OK, detail="an authority for a throw-away key was signed")
    drawn = draw(proved, now=host.clock.now(), ttl_seconds=ttl_seconds)
    return Rehearsal(findings=(signed, *drawn, *proved.warnings), proved=proved)


def failure(what: str, error: BurgeeError) -> Finding:
    """An error as a line of a check."""
    return Finding(what=what, level=FindingLevel.FAILED, detail=f"{error.detail} ({error.reason})", hint=error.hint)


def draw(proved: ProvedCa, *, now: datetime, ttl_seconds: int) -> list[Finding]:
    """The chain link by link from the root down to what signs the new authority, then the new one."""
    path = [load_issuer(der) for der in (*proved.chain, proved.root)]
    above = [
        _link("root" if issuer is path[-1] else "intermediate", issuer, now=now, ttl_seconds=ttl_seconds)
        for issuer in reversed(path[1:])
    ]
    return [*above, _link("new authority", path[0], now=now)]


def _link(what: str, issuer: Issuer, *, now: datetime, ttl_seconds: int = 0) -> Finding:
    left = issuer.not_after - now
    length = "any path length" if issuer.path_length is None else f"path length {issuer.path_length}"
    detail = (
        f"{quote(issuer.certificate.subject.rfc4514_string(_NAMES))}, {_key_of(issuer)}, {length}, ends "
        f"{issuer.not_after:%Y-%m-%dT%H:%M:%SZ} (in {span(left)})"
    )
    hint = ""
    if ttl_seconds and left < (issuer.not_after - issuer.not_before) / SHARE_LEFT:
        hint = "renew it: what is below it gets shorter and shorter, and ends with it"
    elif left < timedelta(seconds=ttl_seconds):
        hint = (
            f"an authority of {span(timedelta(seconds=ttl_seconds))} is cut short by it: ask for less, or let it last"
        )
    return Finding(what=what, level=FindingLevel.WARNING if hint else FindingLevel.OK, detail=detail, hint=hint)


def _key_of(issuer: Issuer) -> str:
    key = issuer.certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return f"EC {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else "Ed25519"


def span(left: timedelta) -> str:
    """For people: the two largest units."""
    seconds = int(left.total_seconds())
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
