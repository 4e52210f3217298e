"""Leave to sign a JWT-SVID once: a token exists only if its bytes passed the lint, and signing uses it up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from ca.identity.spiffe_id import SpiffeId
from ca.issuing.jwt_lint import ExpectedJwt, lint_jwt
from ca.issuing.lifetime import Lifetime
from ca.issuing.token import SAMPLED_OF_256, use_once
from ca.ports import KeyType

ALGORITHMS = {
    KeyType.EC_P256: "ES256",
    KeyType.EC_P384: "ES384",
    KeyType.RSA_2048: "RS256",
    KeyType.RSA_3072: "RS256",
    KeyType.RSA_4096: "RS256",
}
"""JWT-SVID §2.1 (C3), RFC 7518 §3.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtKey:
    """A JWT authority's public half: key id, type, SubjectPublicKeyInfo (DER)."""

    kid: str
    key_type: KeyType
    public_key_der: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JwtToken:
    """A JWT-SVID that may be signed once. Making one lints it; raises Internal (reason LINT) if that fails.

    `signing_input` is `<header>.<claims>`; `tbs_sha256` its hash, for the issuance record. `issued_at` and
    `expires_at` are `iat` and `exp`, seconds since 1970.
    """

    signing_input: bytes
    key: JwtKey
    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    lifetime: Lifetime
    issuer: str
    jti: str
    issued_at: int
    expires_at: int
    tbs_sha256: bytes = field(init=False)
    _use: Callable[[], None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        want = ExpectedJwt(
            algorithm=ALGORITHMS[self.key.key_type],
            kid=self.key.kid,
            subject=str(self.spiffe_id),
            audience=self.audience,
            lifetime=self.lifetime,
            issuer=self.issuer,
            jti=self.jti,
        )
        lint_jwt(self.signing_input, want)
        object.__setattr__(self, "tbs_sha256", hashlib.sha256(self.signing_input).digest())
        object.__setattr__(self, "_use", [None].pop)

    def use(self) -> None:
        """Uses the token up; of two threads that try, one succeeds. Raises Internal (reason TOKEN_USED)."""
        use_once(self._use)

    @property
    def sampled(self) -> bool:
        """Whether this one's signature is to be verified although the key is local."""
        return self.tbs_sha256[0] < SAMPLED_OF_256
