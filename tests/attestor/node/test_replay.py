"""Evidence that is used again, method by method as docs/evidence.md says, against each method's server half in a real
server. A node attestor that the page does not know fails here, a stranger's like our own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca.ports import NodeAttestorPlugin
from ca.proto.spire import server_agent_pb2 as pb
from ca.proto.spire import server_bundle_pb2, types_pb2
from ca.runtime import plugins
from ca.runtime.config import from_values
from tests.ca.api.refusals import Code, refused
from tests.contracts.attestors import NodeSample, sample
from tests.support.server import Identity, RunningServer, make_csr, running_server

PAGE = Path(__file__).resolve().parents[3] / "docs/evidence.md"
_ROW = re.compile(r"^\| `([a-z0-9_]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)
REPLAY = {name: frozenset(part.strip() for part in words.split(",")) for name, words in _ROW.findall(PAGE.read_text())}
NAMES = plugins.names(plugins.NODE_ATTESTORS)
KINDS = frozenset({"nonce", "consumed once", "first use", "while valid"})

Answer = Callable[[bytes], Awaitable[bytes]]


def having(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in NAMES if kind in REPLAY.get(name, ())])


def test_the_page_knows_every_method_and_no_other() -> None:
    assert set(REPLAY) == set(NAMES)
    assert frozenset().union(*REPLAY.values()) == KINDS
    assert all(REPLAY.values())


@dataclass
class Recorded:
    """What an eavesdropper has of one attestation."""

    payload: bytes
    answers: list[bytes] = field(default_factory=list)
    identity: Identity | None = None


@dataclass
class Method:
    """One method in a real server, and its agent half."""

    name: str
    server: RunningServer
    prover: Any

    async def attest(self, payload: bytes, answer: Answer, key: Any = None) -> pb.AttestAgentResponse.Result:
        """One attestation with a key of its own, unless one is given."""
        call = (await self.server.caller()).agents.AttestAgent(timeout=20)
        data = types_pb2.AttestationData(type=self.name, payload=payload)
        params = pb.AttestAgentRequest.Params(data=data, params=pb.AgentX509SVIDParams(csr=make_csr(key)))
        await call.write(pb.AttestAgentRequest(params=params))
        while True:
            response = await call.read()
            if not isinstance(response, pb.AttestAgentResponse):
                await call  # raises
                raise AssertionError("no answer and no error")
            if response.HasField("result"):
                assert await call.read() is grpc.aio.EOF
                return response.result
            await call.write(pb.AttestAgentRequest(challenge_response=await answer(response.challenge)))

    async def record(self) -> Recorded:
        """A good attestation, of which everything that the agent sent is kept."""
        recorded, key = Recorded(await self.prover.payload()), ec.generate_private_key(ec.SECP256R1())

        async def answer(challenge: bytes) -> bytes:
            recorded.answers.append(await self.prover.answer(challenge))
            return recorded.answers[-1]

        result = await self.attest(recorded.payload, answer, key)
        recorded.identity = Identity(path=result.svid.id.path, chain=tuple(result.svid.cert_chain), key=key)
        return recorded

    async def replay(self, recorded: Recorded) -> pb.AttestAgentResponse.Result:
        """All that was recorded, by somebody with another key."""
        answers = iter(recorded.answers)

        async def answer(_: bytes) -> bytes:
            return next(answers)

        return await self.attest(recorded.payload, answer)

    async def forget(self) -> None:
        """The agents are evicted, so that nothing but the evidence is in question."""
        for agent in (await self.server.local.agents.ListAgents(pb.ListAgentsRequest())).agents:
            await self.server.local.agents.DeleteAgent(pb.DeleteAgentRequest(id=agent.id))


@asynccontextmanager
async def method(name: str) -> AsyncIterator[Method]:
    given: NodeSample = sample("node", name)
    plugin = plugins.load(plugins.NODE_ATTESTORS, name, NodeAttestorPlugin)
    prover = plugin.prover(from_values(given.agent, plugin.agent_config))
    async with running_server(node_attestors={name: dict(given.server)}) as server:
        for token in getattr(given.host, "tokens", ()):
            await server.token(token=token)
        yield Method(name, server, prover)


@contextmanager
def not_believed() -> Iterator[None]:
    """The block ends in a refusal of its evidence, and in no fault of ours."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() in (Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT), caught.value


@having("nonce")
async def test_a_recorded_answer_answers_nothing(name: str) -> None:
    async with method(name) as made:
        recorded = await made.record()
        assert recorded.answers, "it says that it has a nonce"
        await made.forget()
        with not_believed():
            await made.replay(recorded)


@having("consumed once")
async def test_what_was_consumed_is_refused_even_if_the_agent_is_forgotten(name: str) -> None:
    async with method(name) as made:
        recorded = await made.record()
        with not_believed():
            await made.replay(recorded)
        await made.forget()
        with not_believed():
            await made.replay(recorded)


@having("first use")
async def test_after_the_first_nobody_is_that_node(name: str) -> None:
    """Not even with fresh answers; until an administrator evicts it."""
    async with method(name) as made:
        first = await made.record()
        payload = await made.prover.payload()
        with refused(Code.PERMISSION_DENIED, reason="AGENT_ALREADY_ATTESTED"):
            await made.attest(payload, made.prover.answer)
        await made.forget()
        assert first.identity is not None
        again = await made.attest(await made.prover.payload(), made.prover.answer)
        assert again.svid.id.path == first.identity.path
        assert not again.reattestable


@having("while valid")
async def test_what_is_valid_is_accepted_and_puts_the_older_svid_out_of_use(name: str) -> None:
    async with method(name) as made:
        first = await made.record()
        old = await made.server.caller(first.identity)
        ask = server_bundle_pb2.GetBundleRequest()
        await old.bundles.GetBundle(ask)
        again = await made.replay(first)
        assert first.identity is not None
        assert again.svid.id.path == first.identity.path
        assert again.reattestable
        with refused(Code.PERMISSION_DENIED, reason="AGENT_NOT_ACTIVE"):
            await old.agents.PostStatus(pb.PostStatusRequest(current_bundle_serial=1))
