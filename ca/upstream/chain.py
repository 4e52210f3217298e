"""Certificates of an upstream put in order: what leads from one of them up to a root, and the roots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ca.identity.certificate import is_issued_by, load_authority

MAX_CERTIFICATES = 100
"""Looked at in one answer or file."""


def is_root(certificate: bytes) -> bool:
    """Whether it is signed by itself. Raises InvalidArgument (CERTIFICATE_MALFORMED)."""
    parsed = load_authority(certificate)
    return parsed.issuer == parsed.subject and is_issued_by(certificate, certificate)


def arrange(certificate: bytes, others: Iterable[bytes]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """(what is above `certificate` in order and without the root, all the roots), DER.

    `others` come in any order and with repetitions; what leads nowhere is left out. Of several ways up it is the
    shortest. The first part ends early where a link is missing: a proof of the chain then says so. Raises
    InvalidArgument (CERTIFICATE_MALFORMED).
    """
    known = [*dict.fromkeys((certificate, *others))][:MAX_CERTIFICATES]
    roots = tuple(der for der in known if is_root(der))
    between = [der for der in known if der != certificate and der not in roots]
    return _way_up(certificate, between, roots), roots


def _way_up(certificate: bytes, between: Sequence[bytes], roots: Sequence[bytes]) -> tuple[bytes, ...]:
    """Breadth first, each certificate once, so that no set of cross-signed ones makes much work."""
    ways: dict[bytes, tuple[bytes, ...]] = {certificate: ()}
    waiting = [certificate]
    for top in waiting:
        if any(is_issued_by(top, root) for root in roots):
            return ways[top]
        for above in between:
            if above not in ways and is_issued_by(top, above):
                ways[above] = (*ways[top], above)
                waiting.append(above)
    return ways[waiting[-1]]
