"""Leave to sign once: a token exists only if its bytes passed the lint, and signing uses it up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from ca.errors import Internal
from ca.identity.spiffe_id import SpiffeId
from ca.issuing.lifetime import Lifetime
from ca.issuing.lint import lint
from ca.issuing.rules import Expected
from ca.issuing.template import Template

SAMPLED_OF_256 = 1
"""Of 256 certificates or tokens signed by a local key, this many have their signature verified again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IssuanceToken:
    """A certificate that may be signed once. Making one lints `tbs`; raises Internal (reason LINT) if that fails.

    `tbs_sha256` is the hash of the bytes to be signed, for the issuance record and for the audit.
    """

    tbs: bytes
    want: Expected
    template: Template
    tbs_sha256: bytes = field(init=False)
    _use: Callable[[], None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lint(self.tbs, self.want, self.template)
        object.__setattr__(self, "tbs_sha256", hashlib.sha256(self.tbs).digest())
        object.__setattr__(self, "_use", [None].pop)

    def use(self) -> None:
        """Uses the token up; of two threads that try, one succeeds. Raises Internal (reason TOKEN_USED)."""
        use_once(self._use)

    @property
    def sampled(self) -> bool:
        """Whether this one's signature is to be verified although the key is local: decided by `tbs_sha256`, which
        hangs on the random serial number."""
        return self.tbs_sha256[0] < SAMPLED_OF_256

    @property
    def serial(self) -> int:
        return self.want.serial

    @property
    def spiffe_id(self) -> SpiffeId:
        return self.want.spiffe_id

    @property
    def lifetime(self) -> Lifetime:
        return self.want.lifetime

    @property
    def not_before(self) -> datetime:
        return self.want.lifetime.not_before

    @property
    def not_after(self) -> datetime:
        return self.want.lifetime.not_after

    @property
    def authority_id(self) -> str:
        """Hex of the issuing key's identifier."""
        return self.want.issuer.authority_id

    @property
    def key_sha256(self) -> bytes:
        """Fingerprint of the certified SubjectPublicKeyInfo."""
        return self.want.key.sha256


def use_once(fuse: Callable[[], None]) -> None:
    """Pops the one element of a list, which is atomic. Raises Internal (reason TOKEN_USED) the second time."""
    try:
        fuse()
    except IndexError as error:
        raise Internal("an issuance token signs once", reason="TOKEN_USED") from error
