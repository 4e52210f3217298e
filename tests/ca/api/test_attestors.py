"""Any node attestor, with challenges: what the server believes of one, and in which order it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca.errors import Denied
from ca.identity.selector import Selector
from ca.ports import AttestedNode, Challenge
from ca.proto.spire import server_agent_pb2 as pb
from ca.proto.spire import types_pb2
from tests.ca.api.refusals import Code, refused
from tests.support.server import RunningServer, attest, broken_csr, entry, make_csr, spiffe_id


class Riddle:
    """A verifier that asks for its own challenge backwards. `path` is what it then vouches for."""

    def __init__(self, path: str = "/spire/agent/riddle/one") -> None:
        self.path = path
        self.asked = 0

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        self.asked += 1
        if await challenge(payload) != payload[::-1]:
            raise Denied("wrong answer", reason="RIDDLE")
        return AttestedNode(path=self.path, selectors=frozenset({Selector("riddle", "solved")}), reattestable=True)


@pytest.fixture
def install(server: RunningServer) -> Callable[[Any], Any]:
    def install(verifier: Any) -> Any:
        server.server._services[0]._attestation._verifiers["riddle"] = verifier  # type: ignore[union-attr, index]
        return verifier

    return install


async def solve(
    server: RunningServer, answer: Callable[[bytes], pb.AttestAgentRequest], csr: bytes | None = None
) -> Any:
    """One attestation in which `answer` makes the reply to the challenge."""
    caller = await server.caller()
    call = caller.agents.AttestAgent(timeout=10)
    data = types_pb2.AttestationData(type="riddle", payload=b"abc")
    params = pb.AttestAgentRequest.Params(data=data, params=pb.AgentX509SVIDParams(csr=csr or make_csr()))
    await call.write(pb.AttestAgentRequest(params=params))
    first = await call.read()
    if not isinstance(first, pb.AttestAgentResponse):
        return await call
    assert first.challenge == b"abc"
    await call.write(answer(first.challenge))
    return (await call.read()).result


def backwards(challenge: bytes) -> pb.AttestAgentRequest:
    return pb.AttestAgentRequest(challenge_response=challenge[::-1])


async def test_a_challenge_answered(server: RunningServer, install: Any) -> None:
    install(Riddle())
    (alias,) = await server.create(entry("/solvers", "/spire/server", "riddle:solved"))
    result = await solve(server, backwards)
    assert result.reattestable
    assert result.svid.id == spiffe_id("/spire/agent/riddle/one")
    agent = await server.local.agents.GetAgent(pb.GetAgentRequest(id=result.svid.id))
    assert (agent.attestation_type, agent.can_reattest) == ("riddle", True)
    assert [(s.type, s.value) for s in agent.selectors] == [("riddle", "solved")]
    await server.server.follower.catch_up()
    assert [e.id for e in server.server.index.authorized(_agent_id(server))] == [alias.id]


async def test_a_wrong_answer_and_a_wrong_message(server: RunningServer, install: Any) -> None:
    install(Riddle())
    with refused(Code.PERMISSION_DENIED, "wrong answer", "RIDDLE"):
        await solve(server, lambda c: pb.AttestAgentRequest(challenge_response=c))
    with refused(Code.INVALID_ARGUMENT, "missing challenge response"):
        await solve(server, lambda c: pb.AttestAgentRequest(params=pb.AttestAgentRequest.Params()))


async def test_a_bad_csr_is_refused_before_the_verifier_is_asked(server: RunningServer, install: Any) -> None:
    riddle = install(Riddle())
    with refused(Code.INVALID_ARGUMENT, reason="CSR_SIGNATURE"):
        await solve(server, backwards, broken_csr())
    assert riddle.asked == 0


@pytest.mark.parametrize("path", ["/spire/agent/join_token/x", "/spire/server", "/workload", "/spire/agent/riddle"])
async def test_an_attestor_vouches_for_its_own_namespace_only(server: RunningServer, install: Any, path: str) -> None:
    install(Riddle(path))
    with refused(Code.INTERNAL, reason="ATTESTOR_PATH"):
        await solve(server, backwards)


async def test_a_verifier_that_breaks_tells_the_caller_nothing(server: RunningServer, install: Any) -> None:
    class Broken:
        async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
            raise RuntimeError("the password is hunter2")

    install(Broken())
    with refused(Code.INTERNAL, "internal error") as refusal:
        await attest(await server.caller(), b"x", make_csr(), kind="riddle")
    assert "hunter2" not in refusal.detail


def _agent_id(server: RunningServer) -> Any:
    from ca.identity.spiffe_id import SpiffeId

    return SpiffeId(server.server.trust_domain, "/spire/agent/riddle/one")


class Seen:
    """A verifier of what anybody on the node can read: the first who shows it is the node."""

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        return AttestedNode(path=f"/spire/agent/riddle/{payload.decode()}")


class TestTrustOnFirstUse:
    async def test_nobody_else_becomes_that_node(self, server: RunningServer, install: Any) -> None:
        install(Seen())
        first = await attest(await server.caller(), b"one", make_csr(), kind="riddle")
        assert not first.reattestable
        with refused(Code.PERMISSION_DENIED, "has attested already", "AGENT_ALREADY_ATTESTED") as why:
            await attest(await server.caller(), b"one", make_csr(), kind="riddle")
        assert why.error is not None
        assert "agent evict" in why.error.hint
        agent = await server.local.agents.GetAgent(pb.GetAgentRequest(id=first.svid.id))
        assert agent.x509svid_serial_number == str(serial_of(first.svid.cert_chain[0]))
        await server.local.agents.DeleteAgent(pb.DeleteAgentRequest(id=first.svid.id))
        assert await attest(await server.caller(), b"one", make_csr(), kind="riddle")

    async def test_of_two_at_once_one_is_the_node(self, server: RunningServer, install: Any) -> None:
        install(Seen())
        callers = [await server.caller() for _ in range(4)]
        tries = (attest(caller, b"one", make_csr(), kind="riddle") for caller in callers)
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert len([outcome for outcome in outcomes if not isinstance(outcome, Exception)]) == 1

    async def test_a_lost_answer_is_given_again_to_the_same_key(self, server: RunningServer, install: Any) -> None:
        install(Seen())
        key = ec.generate_private_key(ec.SECP256R1())
        await attest(await server.caller(), b"one", make_csr(key), kind="riddle")
        again = await attest(await server.caller(), b"one", make_csr(key), kind="riddle")
        with refused(Code.PERMISSION_DENIED, "has attested already", "AGENT_ALREADY_ATTESTED"):
            await attest(await server.caller(), b"one", make_csr(), kind="riddle")
        agent = await server.local.agents.GetAgent(pb.GetAgentRequest(id=again.svid.id))
        assert agent.x509svid_serial_number == str(serial_of(again.svid.cert_chain[0]))

    async def test_a_banned_node_stays_banned(self, server: RunningServer, install: Any) -> None:
        install(Seen())
        first = await attest(await server.caller(), b"one", make_csr(), kind="riddle")
        await server.local.agents.BanAgent(pb.BanAgentRequest(id=first.svid.id))
        with refused(Code.PERMISSION_DENIED, "agent is banned"):
            await attest(await server.caller(), b"one", make_csr(), kind="riddle")


def serial_of(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number
