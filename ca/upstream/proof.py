"""A new authority is proved before it is used: whatever an upstream answers, nobody's handshake may fail for it.

Proved is what verifiers will ask of each SVID below it (RFC 5280 §6.1, X509-SVID §3 and §4, and what OpenSSL and Go ask
for besides), and that the authority lasts for what is to be issued. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.issuer import Issuer, load_issuer
from ca.identity.path import MAX_PATH_CERTIFICATES
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Finding, FindingLevel, UpstreamCa
from ca.upstream import links
from ca.upstream.chain import MAX_CERTIFICATES
from ca.upstream.links import refused

MAX_CHAIN = MAX_PATH_CERTIFICATES - 1
"""Certificates from the new authority up to the root's child; with a leaf it is as many as a peer may present."""

SHORTENED_TOLERANCE = timedelta(seconds=60)
"""By so much upstreams round, backdate and think before it counts as a shorter life than was asked for."""

ROTATION_SHARE = 6
"""The next authority takes over when the last one has a sixth of its life left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What the new authority is for, in seconds: what was asked for, the longest SVID, and what to keep in hand."""

    ttl_seconds: int
    longest_svid_seconds: int
    margin_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedCa:
    """An authority that may sign. `chain` is what was answered, `roots` without what cannot vouch for anybody.

    Between `not_before` and `not_after` all of the path is valid, its root included: what is issued must end by then,
    even where the new certificate says later. `path_length` authorities may follow below the new one, None for any
    number. `warnings` say what works now and will not for ever, or not for everything.
    """

    chain: tuple[bytes, ...]
    root: bytes
    roots: tuple[bytes, ...]
    not_before: datetime
    not_after: datetime
    path_length: int | None
    warnings: tuple[Finding, ...] = ()


def prove(
    answer: UpstreamCa, *, trust_domain: TrustDomain, public_key_der: bytes, need: Need, now: datetime
) -> ProvedCa:
    """Raises FailedPrecondition with an UPSTREAM_* reason unless the answer's first certificate is an authority of this
    trust domain for this key, and leads to a root among those of the answer."""
    chain = _load(answer.chain)
    roots, useless = _load_roots(answer.roots)
    _check_key(chain[0], public_key_der)
    links.check_authority(chain[0], trust_domain)
    root = links.find_root(chain, roots, now=now)
    path = (*chain, root)
    for child, issuer in pairwise(path):
        links.check_link(child, issuer)
    for issuer in path:
        links.check_usages(issuer)
    path_length = links.check_path_lengths(path)
    limited = links.check_names(path, trust_domain)
    not_before, not_after = links.check_validity(path, now)
    warnings = [*_lifetime(not_after, need, now), *limited, *useless]
    if path_length == 0:
        warnings.append(_no_downstream())
    return ProvedCa(
        chain=answer.chain,
        root=_der(root),
        roots=tuple(_der(known) for known in roots),
        not_before=not_before,
        not_after=not_after,
        path_length=path_length,
        warnings=tuple(warnings),
    )


def _load(chain: Sequence[bytes]) -> list[Issuer]:
    if not chain:
        raise refused("it holds no certificate", "UPSTREAM_CHAIN_EMPTY")
    if len(chain) > MAX_CHAIN:
        raise refused(f"it holds {len(chain)} certificates, more than {MAX_CHAIN}", "UPSTREAM_CHAIN_TOO_LONG")
    try:
        return [load_issuer(der) for der in chain]
    except InvalidArgument as error:
        raise refused(f"a certificate cannot be read: {error.detail}", "UPSTREAM_CHAIN_MALFORMED") from error


def _load_roots(roots: Sequence[bytes]) -> tuple[list[Issuer], list[Finding]]:
    """Those that can vouch for somebody, and what is to be said of the others."""
    if len(roots) > MAX_CERTIFICATES:
        raise refused(f"it holds {len(roots)} roots, more than {MAX_CERTIFICATES}", "UPSTREAM_CHAIN_TOO_LONG")
    try:
        loaded = [load_issuer(der) for der in dict.fromkeys(roots)]
    except InvalidArgument as error:
        raise refused(f"a root cannot be read: {error.detail}", "UPSTREAM_CHAIN_MALFORMED") from error
    useless = [_useless(root, root.flaw[1]) for root in loaded if root.flaw is not None]
    return [root for root in loaded if root.flaw is None], useless


def _check_key(authority: Issuer, public_key_der: bytes) -> None:
    found = authority.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if found != public_key_der:
        raise refused("its certificate is for another key than ours", "UPSTREAM_KEY_MISMATCH")


def _lifetime(not_after: datetime, need: Need, now: datetime) -> list[Finding]:
    left = int((not_after - now).total_seconds())
    least = need.longest_svid_seconds + need.margin_seconds
    if left < least:
        raise FailedPrecondition(
            f"the upstream's authority lasts {left} s, the longest SVID needs {need.longest_svid_seconds} s and "
            f"{need.margin_seconds} s are kept in hand",
            reason="UPSTREAM_TOO_SHORT",
            hint="raise what the upstream grants at most, or see which certificate of its chain ends first",
        )
    if timedelta(seconds=need.ttl_seconds - left) <= SHORTENED_TOLERANCE:
        return []
    found = [
        Finding(
            what="lifetime",
            level=FindingLevel.WARNING,
            detail=f"{need.ttl_seconds} s were asked for, the authority lasts {left} s",
            hint="the upstream has a limit, or a certificate of its chain ends soon",
        )
    ]
    if need.longest_svid_seconds > left // ROTATION_SHARE:
        found.append(
            Finding(
                what="lifetime",
                level=FindingLevel.WARNING,
                detail=f"SVIDs of {need.longest_svid_seconds} s will be cut short before the next authority takes over",
                hint=f"an authority of {need.longest_svid_seconds * ROTATION_SHARE} s or more would not",
            )
        )
    return found


def _useless(root: Issuer, why: str) -> Finding:
    return Finding(
        what="roots",
        level=FindingLevel.WARNING,
        detail=f"root {links.name_of(root)} {why}, and is left out",
        hint="take it out of the upstream's bundle",
    )


def _no_downstream() -> Finding:
    return Finding(
        what="path length",
        level=FindingLevel.WARNING,
        detail="no authority may follow below this one: servers downstream of it would not be believed",
        hint="nothing to do where there are none; else a path length of 1 or more is needed at the upstream",
    )


def _der(issuer: Issuer) -> bytes:
    return issuer.certificate.public_bytes(Encoding.DER)
