"""Certificates of an upstream put in order: what leads from one of them up to a root, and the roots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric import rsa

from ca.identity.certificate import is_issued_by, load_authority
from ca.identity.issuer import RSA_BITS
from ca.upstream.links import refused

MAX_CERTIFICATES = 100
"""Looked at in one answer or file."""


MAX_SIGNATURE_CHECKS = 256
"""Bounds the work that a hostile answer can cause: enough for a hundred roots of one name above two certificates."""


class _Checks:
    """Who signed whom, counted."""

    def __init__(self) -> None:
        self._left = MAX_SIGNATURE_CHECKS

    def is_issued_by(self, child: bytes, authority: bytes) -> bool:
        """Whose name is not the issuer's costs nothing. Raises FailedPrecondition, InvalidArgument."""
        above = load_authority(authority)
        if load_authority(child).issuer != above.subject:
            return False
        key = above.public_key()
        if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS.stop:
            raise refused(f"a certificate has an RSA key of {key.key_size} bits", "UPSTREAM_WEAK")
        if not self._left:
            raise refused(
                f"more than {MAX_SIGNATURE_CHECKS} signatures would have to be checked", "UPSTREAM_CHAIN_TOO_COMPLEX"
            )
        self._left -= 1
        return is_issued_by(child, authority)


def arrange(certificate: bytes, others: Iterable[bytes]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """(what is above `certificate` in order and without the root, all the roots), DER.

    `others` come in any order and with repetitions; what leads nowhere is left out. Of several ways up it is the
    shortest. The first part ends early where a link is missing: a proof of the chain then says so. It takes time: not
    for the event loop. Raises InvalidArgument (CERTIFICATE_MALFORMED), FailedPrecondition (UPSTREAM_WEAK,
    UPSTREAM_CHAIN_TOO_COMPLEX) for what would take too much of it.
    """
    checks = _Checks()
    known = [*dict.fromkeys((certificate, *others))][:MAX_CERTIFICATES]
    roots = tuple(der for der in known if checks.is_issued_by(der, der))
    between = [der for der in known if der != certificate and der not in roots]
    return _way_up(certificate, between, roots, checks), roots


def _way_up(certificate: bytes, between: Sequence[bytes], roots: Sequence[bytes], checks: _Checks) -> tuple[bytes, ...]:
    """Breadth first, each certificate once, so that no set of cross-signed ones makes much work."""
    ways: dict[bytes, tuple[bytes, ...]] = {certificate: ()}
    waiting = [certificate]
    for top in waiting:
        if any(checks.is_issued_by(top, root) for root in roots):
            return ways[top]
        for above in between:
            if above not in ways and checks.is_issued_by(top, above):
                ways[above] = (*ways[top], above)
                waiting.append(above)
    return ways[waiting[-1]]
