"""What a server lends to a node attestor's verifier, held in a test's hands."""

from __future__ import annotations

from datetime import UTC, datetime

from ca.errors import Denied
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock, JoinToken
from ca.runtime.clock import SystemClock


class FakeHost:
    """Implements ca.ports.NodeHost. Tokens serve once, as does other evidence; `used` is all that was."""

    trust_domain = TrustDomain("example.org")

    def __init__(self, *tokens: str, clock: Clock | None = None, bundle: TrustBundle | None = None) -> None:
        self.tokens = set(tokens)
        self.asked: list[str] = []
        self.used: set[tuple[str, str]] = set()
        self.bundle = bundle or TrustBundle(trust_domain=self.trust_domain)
        self.clock: Clock = clock or SystemClock()

    async def consume_join_token(self, value: str) -> JoinToken:
        self.asked.append(value)
        if value not in self.tokens:
            raise Denied("unknown", reason="JOIN_TOKEN_UNKNOWN")
        self.tokens.discard(value)
        return JoinToken(value=value, expires_at=datetime(2030, 1, 1, tzinfo=UTC), name=value)

    async def trust_bundle(self) -> TrustBundle:
        return self.bundle

    async def use_once(self, kind: str, key: str, until: datetime) -> None:
        if (kind, key) in self.used:
            raise Denied("used", reason="EVIDENCE_USED")
        self.used.add((kind, key))
