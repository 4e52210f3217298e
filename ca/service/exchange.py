"""A token of a foreign issuer for an SVID, without an agent: whose it is, which entry is for it, then the issuing.

The order is that of cost and of regret: nothing is used up before all that can be known is known, and the token goes
before the record and the signature, so that of many calls with one token at most one is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ca.errors import Denied, FailedPrecondition, InvalidArgument
from ca.identity.entry import RegistrationEntry
from ca.identity.exchange import parent_id, requester
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import quote
from ca.issuing.csr import Csr
from ca.ports import ProvenToken, TokenVerifier
from ca.runtime.notes import note
from ca.service.issuance import Issuer
from ca.service.issuance_jobs import IssuedX509
from ca.service.issuance_jwt import IssuedJwt, JwtIssuer
from ca.service.signing import refuse_in_vain
from ca.store.authorized import AuthorizedIndex

MAX_TOKEN_BYTES = 16 * 1024
MAX_NAME_CHARACTERS = 64


class Signing(Enum):
    """What is wanted."""

    X509 = "x509"
    JWT = "jwt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a caller asks for. Empty texts: any issuer, and the only identity that there is for the token."""

    token: str
    issuer: str = ""
    spiffe_id: str = ""
    ttl_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitled:
    """Whose token it is, and the entry that is for it. Nothing has been used up."""

    verifier: TokenVerifier
    proven: ProvenToken
    requester: str
    entry: RegistrationEntry
    wanted_seconds: int


class Exchanger:
    """`verifiers` by the names of their plugins."""

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        verifiers: Mapping[str, TokenVerifier],
        index: AuthorizedIndex,
        issuer: Issuer,
        tokens: JwtIssuer,
        max_ttl_seconds: int,
    ) -> None:
        self._trust_domain = trust_domain
        self._verifiers = verifiers
        self._index = index
        self._issuer = issuer
        self._tokens = tokens
        self._max_ttl_seconds = max_ttl_seconds

    async def entitled(self, wanted: Wanted) -> Entitled:
        """Raises InvalidArgument for what is malformed, Denied (TOKEN_REFUSED, EXCHANGE_NO_ENTRY, EXCHANGE_AMBIGUOUS),
        Unavailable when the issuer's keys cannot be had, FailedPrecondition EXCHANGE_NOT_CONFIGURED."""
        named = self._checked(wanted)
        kind, verifier, proven = await self._prove(wanted)
        entry = self._entry(kind, proven, named)
        return Entitled(
            verifier=verifier,
            proven=proven,
            requester=requester(kind, proven.issuer, proven.subject),
            entry=entry,
            wanted_seconds=wanted.ttl_seconds,
        )

    async def verify_csr(self, csr: bytes) -> Csr:
        """The proof of possession. Raises InvalidArgument."""
        return await self._issuer.verify_csr(csr)

    async def use_up(self, entitled: Entitled, signing: Signing) -> None:
        """The token, unless there is nothing to sign with. Raises Denied EVIDENCE_USED, Unavailable."""
        refuse_in_vain(self._issuer.authority.x509() if signing is Signing.X509 else self._issuer.authority.jwt())
        await entitled.verifier.use_up_token(entitled.proven)

    async def x509(self, entitled: Entitled, csr: Csr) -> IssuedX509:
        """When the token has been used up."""
        return await self._issuer.for_token(entitled.requester, entitled.entry, csr, self._ttl(entitled, Signing.X509))

    async def jwt(self, entitled: Entitled, audience: Sequence[str]) -> IssuedJwt:
        """When the token has been used up."""
        ttl = self._ttl(entitled, Signing.JWT)
        return await self._tokens.for_token(entitled.requester, entitled.entry, audience, ttl)

    def _ttl(self, entitled: Entitled, signing: Signing) -> int:
        """What was asked for, as far as the entry and the configuration go."""
        entry = entitled.entry
        own = entry.x509_svid_ttl_seconds if signing is Signing.X509 else entry.jwt_svid_ttl_seconds
        longest = min(own or self._max_ttl_seconds, self._max_ttl_seconds)
        return min(entitled.wanted_seconds or longest, longest)

    def _checked(self, wanted: Wanted) -> SpiffeId | None:
        """The identity that was named. What can be refused without a look at the token is."""
        if not self._verifiers:
            raise FailedPrecondition(
                "no tokens are exchanged here",
                reason="EXCHANGE_NOT_CONFIGURED",
                hint="the server's `node_attestors` needs `oidc`, with the token's issuer",
            )
        if not wanted.token or len(wanted.token) > MAX_TOKEN_BYTES:
            raise InvalidArgument(f"a token of 1 to {MAX_TOKEN_BYTES} bytes is needed", reason="TOKEN_MALFORMED")
        if len(wanted.issuer) > MAX_NAME_CHARACTERS or not wanted.issuer.isprintable():
            raise InvalidArgument("that is no issuer's name", reason="EXCHANGE_ISSUER")
        if wanted.ttl_seconds < 0:
            raise InvalidArgument("ttl is negative", reason="TTL_NEGATIVE")
        return SpiffeId.parse(wanted.spiffe_id) if wanted.spiffe_id else None

    async def _prove(self, wanted: Wanted) -> tuple[str, TokenVerifier, ProvenToken]:
        """By the first plugin that believes it; of several that do not, the last one's refusal is told."""
        refusal: Denied | None = None
        for kind, verifier in self._verifiers.items():
            try:
                return kind, verifier, await verifier.prove_token(wanted.token.encode(), wanted.issuer or None)
            except Denied as error:
                refusal = error
        assert refusal is not None
        raise refusal

    def _entry(self, kind: str, proven: ProvenToken, named: SpiffeId | None) -> RegistrationEntry:
        """The caller learns of no entry but the one that it is given."""
        parent = parent_id(self._trust_domain, kind, proven.issuer)
        below = self._index.below(parent)
        fitting = [entry for entry in below if entry.selectors <= proven.selectors]
        chosen = [entry for entry in fitting if named in (None, entry.spiffe_id)]
        _note(parent, below, fitting, proven, named)
        if not chosen:
            raise Denied(
                "no entry is for this token",
                reason="EXCHANGE_NO_ENTRY",
                hint="an administrator sees in the server's log what the token proved and which entries came near",
            )
        if len({entry.spiffe_id for entry in chosen}) > 1:
            raise Denied(
                "the token is good for several identities: name one",
                reason="EXCHANGE_AMBIGUOUS",
                hint="say which by `spiffe_id` (`caadmin exchange --spiffe-id`); the token has not been used up",
            )
        # Several entries for one identity differ in lesser things: the most particular one counts.
        return max(chosen, key=lambda entry: (len(entry.selectors), entry.id))


def _note(
    parent: SpiffeId,
    below: Sequence[RegistrationEntry],
    fitting: Sequence[RegistrationEntry],
    proven: ProvenToken,
    named: SpiffeId | None,
) -> None:
    note("proven", ", ".join(sorted(map(str, proven.selectors))))
    note("entries", f"{len(below)} below `{parent}`, {len(fitting)} of them are for the token")
    if fitting:
        asked = "none was named" if named is None else f"named was `{named}`"
        note("identities", f"{', '.join(sorted({str(entry.spiffe_id) for entry in fitting}))}; {asked}")
    elif below:
        nearest = min(below, key=lambda entry: (len(entry.selectors - proven.selectors), entry.id))
        missing = ", ".join(sorted(map(str, nearest.selectors - proven.selectors)))
        note("nearest entry", f"`{nearest.id}` for `{nearest.spiffe_id}` wants besides: {quote(missing)}")
