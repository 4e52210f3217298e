"""Node attestation by OIDC token: a forge or a platform says by a signed token who runs here.

The payload is the token's bytes. The same verification serves callers without an agent, who exchange the token for an
SVID. A token serves once among all servers, whichever way.
"""

from __future__ import annotations

from collections.abc import Sequence

from attestor.node.foreign_jwt import ForeignToken, TokenFault, UnverifiedToken, refused, take_apart, verify_token
from attestor.node.jwks import Jwks
from attestor.node.oidc_claims import check_required, evidence_of, path_values, selectors_of, subject_of
from attestor.node.oidc_config import NAME, AgentConfig, IssuerConfig, ServerConfig
from attestor.node.oidc_source import TokenSource
from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.text import quote
from ca.ports import AttestedNode, Challenge, Finding, FindingLevel, NodeAttestorPlugin, NodeHost, ProvenToken
from ca.runtime import log
from ca.runtime.https import context_of
from ca.runtime.notes import note

logger = log.get("attestor.node.oidc")


class _Issuer:
    """One issuer that is configured, with its keys."""

    def __init__(self, name: str, config: IssuerConfig, host: NodeHost) -> None:
        self.name = name
        self.config = config
        self.template = config.path_template
        self.keys = Jwks(
            config.issuer,
            clock=host.clock,
            jwks_uri=config.jwks_uri,
            context=context_of(ca_file=config.ca_file),
        )


class OidcVerifier:
    """Server half; implements ca.ports.NodeVerifier and ca.ports.TokenVerifier."""

    def __init__(self, config: ServerConfig, host: NodeHost) -> None:
        self._host = host
        issuers = [_Issuer(name, issuer, host) for name, issuer in config.issuers.items()]
        self._issuers = {issuer.config.issuer: issuer for issuer in issuers}
        for issuer in issuers:
            if issuer.config.agents and not issuer.config.required_claims:
                logger.warning(
                    "any token of this issuer, for our audience, makes an agent",
                    issuer=issuer.name,
                    reason="OIDC_ANY_TOKEN",
                    hint="say by `required_claims` whose are meant, or `agents: false`",
                )

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        proven, issuer, token = await self._prove(payload, None, agents=True)
        path = issuer.template.render(
            path_values(issuer.name, issuer.config.issuer, token.claims, proven.evidence)
        )  # before the token is used up: what cannot be a path costs nothing
        await self.use_up_token(proven)
        return AttestedNode(path=path, selectors=proven.selectors, reattestable=issuer.config.reattest)

    async def prove_token(self, token: bytes, issuer: str | None) -> ProvenToken:
        proven, _, _ = await self._prove(token, issuer, agents=False)
        return proven

    async def use_up_token(self, proven: ProvenToken) -> None:
        await self._host.use_once(NAME, proven.evidence, proven.valid_until)

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether each issuer can be asked for its keys."""
        return [await _looked_at(issuer) for issuer in self._issuers.values()]

    async def _prove(
        self, payload: bytes, wanted: str | None, *, agents: bool
    ) -> tuple[ProvenToken, _Issuer, ForeignToken]:
        parts = take_apart(payload)
        try:
            issuer = self._issuer(parts, wanted, agents=agents)
            token = await verify_token(parts, rules=issuer.config.rules, keys=issuer.keys, now=self._host.clock.now())
            subject = subject_of(token.claims)
            note("token", f"issuer `{issuer.name}`, subject {quote(subject)}, until {token.expires_at.isoformat()}")
            check_required(token.claims, issuer.config.required_claims)
            selectors = selectors_of(issuer.name, token.claims, issuer.config.claims)
        except TokenFault as fault:
            raise refused(fault) from fault
        proven = ProvenToken(
            issuer=issuer.name,
            subject=subject,
            selectors=selectors,
            evidence=evidence_of(issuer.config.issuer, token.claims, parts.signing_input),
            valid_until=token.valid_until,
        )
        return proven, issuer, token

    def _issuer(self, parts: UnverifiedToken, wanted: str | None, *, agents: bool) -> _Issuer:
        """By what the token says of itself, which its verification then holds it to."""
        issuer = self._issuers.get(parts.issuer)
        if issuer is None:
            raise TokenFault(f"no issuer {quote(parts.issuer)} is configured", reason="TOKEN_ISSUER")
        if wanted is not None and issuer.name != wanted:
            raise TokenFault(
                f"the token is of the issuer `{issuer.name}`, asked for was {quote(wanted)}", reason="TOKEN_ISSUER"
            )
        if not (issuer.config.agents if agents else issuer.config.exchange):
            use = "agents" if agents else "exchange"
            raise TokenFault(f"tokens of the issuer `{issuer.name}` are not for `{use}`", reason="TOKEN_ISSUER")
        return issuer


async def _looked_at(issuer: _Issuer) -> Finding:
    known = await issuer.keys.look()
    what, trouble = f"keys of the OIDC issuer `{issuer.name}`", issuer.keys.trouble
    if trouble:
        return Finding(
            what=what,
            level=FindingLevel.FAILED,
            detail=f"{trouble}; {known} known from before",
            hint=f"can this machine reach {issuer.config.issuer}? for a private authority there is `ca_file`",
        )
    if not known:
        return Finding(
            what=what, level=FindingLevel.FAILED, detail="it has none that can sign", hint="look at its key set"
        )
    return Finding(what=what, level=FindingLevel.OK, detail=f"{known} known")


class OidcProver:
    """Agent half. Remembers the last token that it gave away, because a token works once."""

    def __init__(self, config: AgentConfig) -> None:
        self._source = TokenSource(config)
        self._given: str | None = None

    @property
    def can_reattest(self) -> bool:
        """True while there is a token that has not been given away yet, or can be one at any time."""
        if self._source.makes_new_ones:
            return True
        try:
            return self._source.kept() != self._given
        except FailedPrecondition:
            return False

    async def payload(self) -> bytes:
        self._given = await self._source.read()
        return self._given.encode()

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether there is a token, and for whom. No service is asked for one."""
        what = "the OIDC token"
        if self._source.makes_new_ones:
            return [Finding(what=what, level=FindingLevel.OK, detail="a service is asked for one when it is needed")]
        try:
            claims = take_apart(self._source.kept()).claims
        except (FailedPrecondition, InvalidArgument) as error:
            return [Finding(what=what, level=FindingLevel.FAILED, detail=error.detail, hint=error.hint)]
        told = ", ".join(f"`{name}` {quote(str(claims.get(name)))}" for name in ("iss", "aud", "sub"))
        hint = "`aud` must be the server's `audience`, letter for letter"
        return [Finding(what=what, level=FindingLevel.OK, detail=told, hint=hint)]

    async def answer(self, challenge: bytes) -> bytes:
        raise FailedPrecondition(
            "the server sent a challenge, which OIDC tokens do not have", reason="UNEXPECTED_CHALLENGE"
        )


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=OidcVerifier,
    prover=OidcProver,
)
