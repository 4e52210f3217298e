"""Agents: attestation, renewal, ban, eviction, status and lists, as recorded of SPIRE or better."""

from __future__ import annotations

import asyncio
import os

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.spire import server_agent_pb2 as pb
from ca.proto.spire import server_bundle_pb2, server_entry_pb2, types_pb2
from ca.service.attestation import VERSIONS_AT_ONCE
from ca.service.follower import Follower
from tests.ca.api.refusals import Code, refused
from tests.support.server import (
    Caller,
    Identity,
    RunningServer,
    attest,
    broken_csr,
    entry,
    eventually,
    make_csr,
    running_server,
    spiffe_id,
)

TD = TrustDomain("example.org")
TYPES = types_pb2


def params(**fields: object) -> pb.AttestAgentRequest:
    return pb.AttestAgentRequest(params=pb.AttestAgentRequest.Params(**fields))  # type: ignore[arg-type]


async def first_answer(caller: Caller, request: pb.AttestAgentRequest) -> object:
    call = caller.agents.AttestAgent(timeout=10)
    await call.write(request)
    answer = await call.read()
    await call
    return answer


async def renew(caller: Caller, identity: Identity, csr: bytes | None = None) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    request = pb.RenewAgentRequest(params=pb.AgentX509SVIDParams(csr=csr or make_csr(key)))
    svid = (await caller.agents.RenewAgent(request)).svid
    return Identity(path=svid.id.path, chain=tuple(svid.cert_chain), key=key)


async def get(server: RunningServer, path: str, **fields: object) -> types_pb2.Agent:
    request = pb.GetAgentRequest(id=spiffe_id(path), **fields)  # type: ignore[arg-type]
    agent: types_pb2.Agent = await server.local.agents.GetAgent(request)
    return agent


async def post_status(caller: Caller) -> None:
    await caller.agents.PostStatus(pb.PostStatusRequest(current_bundle_serial=1))


class TestJoinTokens:
    async def test_made_by_the_server_or_by_the_caller(self, server: RunningServer) -> None:
        made = await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=600))
        assert len(made.value) == 36
        assert made.expires_at > 0
        own = await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=600, token="my-own-token-0001"))
        assert own.value == "my-own-token-0001"
        with refused(Code.ALREADY_EXISTS):
            await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=600, token="my-own-token-0001"))

    @pytest.mark.parametrize("ttl", [0, -1])
    async def test_needs_a_ttl(self, server: RunningServer, ttl: int) -> None:
        with refused(Code.INVALID_ARGUMENT, "ttl is required"):
            await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=ttl))

    async def test_a_token_that_could_never_be_an_agent_is_refused(self, server: RunningServer) -> None:
        for token in ("bad token/with%chars", "a/b", "..", "x" * 2048):
            with refused(Code.INVALID_ARGUMENT):
                await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=600, token=token))

    async def test_a_token_that_can_be_guessed_is_refused(self, server: RunningServer) -> None:
        for token in ("a", "my-token", "x" * 15):
            with refused(Code.INVALID_ARGUMENT, "shorter than 16 characters", "JOIN_TOKEN_TOO_SHORT") as refusal:
                await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=600, token=token))
            assert token not in refusal.detail.split()
        assert await server.token(token="x" * 16) == "x" * 16

    @pytest.mark.parametrize(
        ("alias", "part"),
        [
            (spiffe_id("/my-node", "foreign.org"), "is not a member of trust domain"),
            (spiffe_id("/spire/agent/x"), "reserved namespace"),
            (spiffe_id("/spire/server"), "reserved namespace"),
            (spiffe_id(""), "path is empty"),
            (spiffe_id("nolead"), "leading slash"),
        ],
    )
    async def test_bad_aliases(self, server: RunningServer, alias: types_pb2.SPIFFEID, part: str) -> None:
        with refused(Code.INVALID_ARGUMENT, part) as refusal:
            await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=600, agent_id=alias))
        assert refusal.detail.startswith("invalid agent ID: ")

    async def test_an_alias_becomes_an_entry_and_goes_with_the_agent(self, server: RunningServer) -> None:
        token = await server.token(agent_id=spiffe_id("/my-node"))
        listed = (await server.local.entries.ListEntries(server_entry_pb2.ListEntriesRequest())).entries
        (alias,) = listed
        parent = f"/spire/agent/join_token/{token}"
        assert (alias.spiffe_id.path, alias.parent_id.path) == ("/my-node", parent)
        assert [(s.type, s.value) for s in alias.selectors] == [("spiffe_id", f"spiffe://example.org{parent}")]
        identity = await server.attest(token=token)
        assert identity.path == parent
        await server.local.agents.DeleteAgent(pb.DeleteAgentRequest(id=spiffe_id(parent)))
        assert (await server.local.entries.CountEntries(server_entry_pb2.CountEntriesRequest())).count == 0


class TestAttestation:
    async def test_one_request_one_answer(self, server: RunningServer) -> None:
        identity = await server.attest()
        (uri,) = [n.value for n in identity.leaf.extensions[5].value]
        assert uri == f"spiffe://example.org{identity.path}"
        agent = await get(server, identity.path)
        assert agent.attestation_type == "join_token"
        assert agent.x509svid_serial_number == str(identity.leaf.serial_number)
        assert not agent.can_reattest

    @pytest.mark.parametrize("payload", [b"nope-nope", b""])
    async def test_unknown_tokens(self, server: RunningServer, payload: bytes) -> None:
        with refused(Code.INVALID_ARGUMENT):
            await attest(await server.caller(), payload, make_csr())

    async def test_a_used_token(self, server: RunningServer) -> None:
        token = await server.token()
        await server.attest(token=token)
        with refused(Code.INVALID_ARGUMENT, "does not exist or has already been used", "JOIN_TOKEN_UNKNOWN"):
            await server.attest(token=token)

    async def test_an_expired_token_says_so_each_time(self, server: RunningServer) -> None:
        made = await server.local.agents.CreateJoinToken(pb.CreateJoinTokenRequest(ttl=1))
        await eventually(lambda: server.server.clock.now().timestamp() > made.expires_at + 1)
        for _ in range(3):
            with refused(Code.INVALID_ARGUMENT, "expired", "JOIN_TOKEN_EXPIRED"):
                await server.attest(token=made.value)

    async def test_of_fifty_at_once_exactly_one_wins(self, server: RunningServer) -> None:
        token = await server.token()
        callers = [await server.caller() for _ in range(10)]
        tries = [server.attest(token=token, caller=callers[i % 10], csr=make_csr()) for i in range(50)]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        won = [outcome for outcome in outcomes if isinstance(outcome, Identity)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert (len(won), len(lost)) == (1, 49)
        assert {error.code() for error in lost} == {Code.INVALID_ARGUMENT}

    @pytest.mark.parametrize("csr", [broken_csr(), b"garbage", make_csr()[:-3], os.urandom(17 * 1024)])
    async def test_a_bad_csr_leaves_the_token_alone(self, server: RunningServer, csr: bytes) -> None:
        token = await server.token()
        with refused(Code.INVALID_ARGUMENT) as refusal:
            await server.attest(token=token, csr=csr)
        assert refusal.reason.startswith("CSR_")
        assert (await server.attest(token=token)).path.endswith(token)

    async def test_names_in_the_csr_are_ignored(self, server: RunningServer) -> None:
        token = await server.token()
        other = make_csr(uris=["spiffe://example.org/spire/agent/other"])
        assert (await server.attest(token=token, csr=other)).path == f"/spire/agent/join_token/{token}"

    @pytest.mark.parametrize(
        ("request_", "code", "part"),
        [
            (params(), Code.INVALID_ARGUMENT, "malformed param: missing attestation data"),
            (params(data=TYPES.AttestationData(payload=b"x")), Code.INVALID_ARGUMENT, "missing attestation data type"),
            (
                params(data=TYPES.AttestationData(type="join_token", payload=b"x")),
                Code.INVALID_ARGUMENT,
                "malformed param: missing CSR",
            ),
            (pb.AttestAgentRequest(challenge_response=b"x"), Code.INVALID_ARGUMENT, "malformed param: missing params"),
            (
                params(
                    data=TYPES.AttestationData(type="no_such_type", payload=b"x"),
                    params=pb.AgentX509SVIDParams(csr=make_csr()),
                ),
                Code.FAILED_PRECONDITION,
                "no_such_type",
            ),
        ],
    )
    async def test_malformed_requests(
        self, server: RunningServer, request_: pb.AttestAgentRequest, code: grpc.StatusCode, part: str
    ) -> None:
        with refused(code, part):
            await first_answer(await server.caller(), request_)

    async def test_attesting_again_supersedes_the_first_svid(self, server: RunningServer) -> None:
        token = await server.token()
        first = await server.caller(await server.attest(token=token))
        await post_status(first)
        await server.token(token=token)
        second = await server.caller(await server.attest(token=token))
        with refused(Code.PERMISSION_DENIED, reason="AGENT_NOT_ACTIVE"):
            await post_status(first)
        await post_status(second)


class TestRenewal:
    async def test_pending_until_first_use_then_current(self, server: RunningServer) -> None:
        old, caller = await server.agent()
        new = await renew(caller, old)
        assert new.path == old.path
        serial = str(old.leaf.serial_number)
        assert (await get(server, old.path)).x509svid_serial_number == serial
        await post_status(caller)  # the old one still works
        renewed = await server.caller(new)
        await post_status(renewed)
        assert (await get(server, old.path)).x509svid_serial_number == str(new.leaf.serial_number)
        with refused(Code.PERMISSION_DENIED, "authorization denied for method", "AGENT_NOT_ACTIVE"):
            await post_status(caller)

    async def test_a_bad_csr(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        for csr, reason in ((b"junk", "CSR_MALFORMED"), (broken_csr(), "CSR_SIGNATURE")):
            with refused(Code.INVALID_ARGUMENT, reason=reason):
                await renew(caller, identity, csr)
        with refused(Code.INVALID_ARGUMENT, "missing CSR"):
            await caller.agents.RenewAgent(pb.RenewAgentRequest(params=pb.AgentX509SVIDParams()))

    async def test_a_reattestable_agent_must_reattest(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        agent_id = SpiffeId(TD, identity.path)
        stored = await server.server.store.agents.get(agent_id)
        assert stored is not None
        from dataclasses import replace

        await server.server.store.agents.upsert(replace(stored, reattestable=True))
        await server.server.follower.catch_up()
        with refused(Code.PERMISSION_DENIED, "agent must reattest instead of renew", "AGENT_MUST_REATTEST"):
            await renew(caller, identity)


class TestEndOfRights:
    async def test_ban(self, server: RunningServer) -> None:
        token = await server.token()
        identity = await server.attest(token=token)
        caller = await server.caller(identity)
        await post_status(caller)
        ban = pb.BanAgentRequest(id=spiffe_id(identity.path))
        await server.local.agents.BanAgent(ban)
        await server.local.agents.BanAgent(ban)
        with refused(Code.PERMISSION_DENIED, "authorization denied for method", "AGENT_BANNED"):
            await post_status(await server.caller(identity))
        with refused(Code.PERMISSION_DENIED, reason="AGENT_BANNED"):
            await renew(await server.caller(identity), identity)
        shown = await get(server, identity.path)
        assert shown.banned
        assert shown.x509svid_serial_number == ""
        await server.token(token=token)
        with refused(Code.PERMISSION_DENIED, "failed to attest: agent is banned"):
            await server.attest(token=token)
        await server.local.agents.DeleteAgent(pb.DeleteAgentRequest(id=spiffe_id(identity.path)))
        await server.token(token=token)
        assert (await server.attest(token=token)).path == identity.path

    async def test_a_banned_agent_may_still_ask_for_the_bundle(self, server: RunningServer) -> None:
        identity, _ = await server.agent()
        await server.local.agents.BanAgent(pb.BanAgentRequest(id=spiffe_id(identity.path)))
        again = await server.caller(identity)
        bundle = await again.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
        assert bundle.trust_domain == "example.org"

    async def test_eviction(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        evict = pb.DeleteAgentRequest(id=spiffe_id(identity.path))
        await server.local.agents.DeleteAgent(evict)
        with refused(Code.PERMISSION_DENIED, reason="AGENT_NOT_ATTESTED"):
            await post_status(await server.caller(identity))
        with refused(Code.NOT_FOUND, "agent not found"):
            await server.local.agents.DeleteAgent(evict)
        del caller

    async def test_expiry_on_an_open_connection(self) -> None:
        async with running_server(agent_ttl_seconds=2, x509_svid_ttl_seconds=60) as server:
            identity, caller = await server.agent()
            await post_status(caller)
            connections = caller.tls.connections if caller.tls else 0
            await eventually(lambda: server.server.clock.now() > identity.leaf.not_valid_after_utc)
            with refused(Code.PERMISSION_DENIED, "authorization denied for method", "AGENT_EXPIRED"):
                await post_status(caller)
            with refused(Code.PERMISSION_DENIED, reason="AGENT_EXPIRED"):
                await renew(caller, identity)
            await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())  # open to anyone, so to this one
            assert caller.tls is not None
            assert caller.tls.connections == connections

    async def test_a_renewed_svid_is_no_way_around_a_ban(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        new = await renew(caller, identity)
        await server.local.agents.BanAgent(pb.BanAgentRequest(id=spiffe_id(identity.path)))
        with refused(Code.PERMISSION_DENIED, reason="AGENT_BANNED"):
            await post_status(await server.caller(new))


class TestLists:
    async def test_get_with_masks(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        await caller.agents.PostStatus(pb.PostStatusRequest(agent_version="9.9.9"))
        whole = await get(server, identity.path)
        assert whole.agent_version == "9.9.9"
        masked = await get(server, identity.path, output_mask=types_pb2.AgentMask(x509svid_serial_number=True))
        assert masked == types_pb2.Agent(id=whole.id, x509svid_serial_number=whole.x509svid_serial_number)
        empty = await get(server, identity.path, output_mask=types_pb2.AgentMask())
        assert empty == types_pb2.Agent(id=whole.id)

    async def test_the_version_is_bounded(self, server: RunningServer) -> None:
        _, caller = await server.agent()
        with refused(Code.INVALID_ARGUMENT):
            await caller.agents.PostStatus(pb.PostStatusRequest(agent_version="v" * 256))

    async def test_the_version_cannot_speak_to_a_terminal(self, server: RunningServer) -> None:
        identity, caller = await server.agent()
        for version in ("\x1b]0;pwn\x07\x1b[2J evil", "1.0\n2.0", "\x9b31m", "\u202e"):
            with refused(Code.INVALID_ARGUMENT, reason="AGENT_VERSION") as refusal:
                await caller.agents.PostStatus(pb.PostStatusRequest(agent_version=version))
            assert refusal.detail.isprintable()
        assert (await get(server, identity.path)).agent_version == ""

    async def test_an_unknown_attestors_name_cannot_either(self, server: RunningServer) -> None:
        with refused(Code.FAILED_PRECONDITION, "no node attestor of type `x\\n\\x1b[31m`") as refusal:
            await attest(await server.caller(), b"x", make_csr(), kind="x\n\x1b[31m")
        assert refusal.detail.isprintable()

    async def test_a_version_that_always_changes_is_not_always_written(self) -> None:
        async with running_server(limits={"status_posts_per_second_per_agent": 1000}) as server:
            identity, caller = await server.agent()
            before = await server.server.store.changes.revision()
            for n in range(20):
                await caller.agents.PostStatus(pb.PostStatusRequest(agent_version=f"{n}"))
                await caller.agents.PostStatus(pb.PostStatusRequest(agent_version=f"{n}"))
            assert await server.server.store.changes.revision() == before + VERSIONS_AT_ONCE
            assert (await get(server, identity.path)).agent_version == "2"

    @pytest.mark.parametrize(
        ("asked", "code", "part"),
        [
            (spiffe_id("/spire/agent/nope"), Code.NOT_FOUND, "agent not found"),
            (None, Code.INVALID_ARGUMENT, "request must specify SPIFFE ID"),
            (spiffe_id("/w"), Code.INVALID_ARGUMENT, "path is not in the agent namespace"),
            (spiffe_id("/spire/agent/x", "foreign.org"), Code.INVALID_ARGUMENT, "is not a member of trust domain"),
        ],
    )
    async def test_ids_that_name_no_agent(
        self, server: RunningServer, asked: types_pb2.SPIFFEID | None, code: grpc.StatusCode, part: str
    ) -> None:
        agents = server.local.agents
        for method, request in (
            (agents.GetAgent, pb.GetAgentRequest(id=asked)),
            (agents.BanAgent, pb.BanAgentRequest(id=asked)),
            (agents.DeleteAgent, pb.DeleteAgentRequest(id=asked)),
        ):
            with refused(code, part):
                await method(request)

    async def test_pages_filters_counts(self, server: RunningServer) -> None:
        paths = [(await server.attest()).path for _ in range(3)]
        await server.local.agents.BanAgent(pb.BanAgentRequest(id=spiffe_id(paths[1])))
        seen, token = [], ""
        while True:
            page = await server.local.agents.ListAgents(
                pb.ListAgentsRequest(page_size=1, page_token=token, output_mask=types_pb2.AgentMask())
            )
            seen += [agent.id.path for agent in page.agents]
            token = page.next_page_token
            if not token:
                break
        assert seen == paths
        everything = await server.local.agents.ListAgents(pb.ListAgentsRequest(page_token="ignored without a size"))
        assert len(everything.agents) == 3
        with refused(Code.INVALID_ARGUMENT, "page token"):
            await server.local.agents.ListAgents(pb.ListAgentsRequest(page_size=1, page_token="junk"))

        async def count(**fields: object) -> int:
            request = pb.CountAgentsRequest()
            for name, value in fields.items():
                if isinstance(value, bool):
                    getattr(request.filter, name).value = value
                else:
                    setattr(request.filter, name, value)
            return int((await server.local.agents.CountAgents(request)).count)

        assert await count() == 3
        assert await count(by_attestation_type="join_token") == 3
        assert await count(by_attestation_type="x509pop") == 0
        assert await count(by_banned=True) == 1
        assert await count(by_banned=False) == 2
        assert await count(by_can_reattest=True) == 0
        assert await count(by_expires_before="2100-01-01T00:00:00Z") == 3
        assert await count(by_expires_before="2100-01-01 00:00:00 +0000 UTC") == 3
        assert await count(by_expires_before="2020-01-01T00:00:00Z") == 0
        with refused(Code.INVALID_ARGUMENT, "is no time"):
            await count(by_expires_before="junk")

    async def test_an_empty_selector_filter_is_refused(self, server: RunningServer) -> None:
        request = pb.ListAgentsRequest()
        request.filter.by_selector_match.SetInParent()
        with refused(Code.INVALID_ARGUMENT, "empty selector set"):
            await server.local.agents.ListAgents(request)


async def test_what_an_agent_is_entitled_to_is_known_when_it_is_attested(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the server is with following its store."""

    async def idle(_: Follower) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Follower, "run", idle)
    async with running_server() as server:
        (created,) = await server.create(entry("/web", "/node"))
        identity = await server.attest(token=await server.token(agent_id=spiffe_id("/node")))
        caller = await server.caller(identity)
        answer = await caller.entries.GetAuthorizedEntries(server_entry_pb2.GetAuthorizedEntriesRequest())
        assert created.id in {one.id for one in answer.entries}
