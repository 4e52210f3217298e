"""A node attestor from a package of its own: whoever says their name when asked is that node, again and again."""

from __future__ import annotations

from ca.errors import Denied
from ca.identity.selector import Selector
from ca.ports import AttestedNode, Challenge, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel


class Config(StrictModel):
    """Nothing to configure."""


class Verifier:
    """Asks for the name back. Good for tests only."""

    def __init__(self, _config: Config, _host: NodeHost) -> None:
        pass

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        name = payload.decode("ascii")
        if await challenge(b"say " + payload) != payload:
            raise Denied("the answer to the challenge is wrong", reason="ATTESTATION_DENIED")
        selector = Selector.parse(f"conformance:name:{name}")
        return AttestedNode(path=f"/spire/agent/conformance/{name}", selectors=frozenset({selector}), reattestable=True)


class Prover:
    """The other half, which no test needs but every plugin has."""

    can_reattest = True

    def __init__(self, _config: Config) -> None:
        pass

    async def payload(self) -> bytes:
        return b"node"

    async def answer(self, challenge: bytes) -> bytes:
        return challenge.removeprefix(b"say ")


plugin = NodeAttestorPlugin(
    name="conformance", server_config=Config, agent_config=Config, verifier=Verifier, prover=Prover
)
