"""On which authorities an X.509-SVID hangs, by their key identifiers; and whether one of them is tainted.

For chains that were verified already: no signature is looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from cryptography import x509

from ca.errors import InvalidArgument
from ca.identity.bundle import TrustBundle, authority_id
from ca.identity.certificate import load_authority
from ca.identity.path import MAX_PATH_CERTIFICATES


@lru_cache(maxsize=1024)
def issuer_ids(authority_key_id: str, intermediates: tuple[bytes, ...] = ()) -> tuple[str, ...]:
    """The IDs of a leaf's issuers, nearest first: `authority_key_id` (hex) is what the leaf names, `intermediates`
    (DER, any order) lead on from there. Empty for a leaf that names none."""
    above = dict(_link(der) for der in intermediates)
    found: list[str] = []
    wanted = authority_key_id
    while wanted and wanted not in found and len(found) < MAX_PATH_CERTIFICATES:
        found.append(wanted)
        wanted = above.get(wanted, "")
    return tuple(found)


@lru_cache(maxsize=8)
def authority_ids(bundle: TrustBundle) -> tuple[str, ...]:
    """The IDs of a bundle's authorities, those of X.509 first, then those of JWT keys."""
    x509_ids = (authority_id(authority.certificate) for authority in bundle.x509_authorities)
    return (*x509_ids, *(key.key_id for key in bundle.jwt_authorities))


def _link(der: bytes) -> tuple[str, str]:
    """(the certificate's own ID, its issuer's), both empty for one that cannot be read."""
    try:
        own, extensions = authority_id(der), load_authority(der).extensions
    except InvalidArgument:
        return "", ""
    try:
        above = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return own, ""
    return own, (above or b"").hex()


@dataclass(frozen=True, slots=True)
class Taints:
    """The tainted X.509 authorities of a bundle and the others, by ID. None counts as tainted while there is no other:
    nothing better could be had."""

    tainted: frozenset[str] = frozenset()
    clean: frozenset[str] = frozenset()

    @classmethod
    def of(cls, bundle: TrustBundle | None) -> Self:
        authorities = bundle.x509_authorities if bundle is not None else ()
        tainted = frozenset(authority_id(a.certificate) for a in authorities if a.tainted)
        clean = frozenset(authority_id(a.certificate) for a in authorities if not a.tainted) - tainted
        return cls(tainted if clean else frozenset(), clean)

    def reach(self, issuers: Sequence[str]) -> bool:
        """Whether the first authority of the bundle among these issuers (nearest first) is a tainted one: a tainted key
        that somebody else vouches for is tainted all the same, a clean one that a tainted key vouches for is not."""
        return next((one in self.tainted for one in issuers if one in self.tainted or one in self.clean), False)
