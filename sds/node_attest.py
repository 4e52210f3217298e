"""The agent's three calls about itself: first bundle, attestation, renewal. Each opens a link of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ca.errors import BurgeeError, Code, FailedPrecondition, Unauthenticated
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import is_agent_path
from ca.identity.svid import parse_x509_svid, verify_x509_svid
from ca.ports import Clock, NodeProver
from ca.proto.burgee import node_pb2, node_pb2_grpc
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc, server_bundle_pb2, server_bundle_pb2_grpc, types_pb2
from ca.runtime.log import get
from sds.config import AgentConfig
from sds.first_trust import ServerTrust
from sds.keys import PrivateKey, WorkloadKey, generate, restored
from sds.server_link import ServerLink
from sds.state import AgentStore, AgentSvid
from sds.wire import bundle_from_wire

RPC_TIMEOUT_SECONDS = 30.0
MAX_CHALLENGES = 16
"""A server that never comes to a result is given up; no attestor needs more than two."""


log = get("sds.identity")

REFUSALS = frozenset({Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.NOT_FOUND, Code.FAILED_PRECONDITION})
"""A server that answers so will answer so again, until somebody acts."""


class NodeCalls:
    """All raise members of the error family. `store` is where the key of an attestation waits for its outcome."""

    def __init__(
        self, *, config: AgentConfig, trust: ServerTrust, clock: Clock, store: AgentStore | None = None
    ) -> None:
        self._config = config
        self._trust = trust
        self._clock = clock
        self._store = store
        self._attesting: WorkloadKey | None = None

    async def fetch_first_bundle(self) -> None:
        """With `insecure_bootstrap`: the bundle of the first server that answers with the server's ID.

        The chain it showed must verify against the bundle it gave, else the bundle is of no use; against what was
        dropped before it counts for nothing.
        """
        async with self._link(None, first=True) as link:
            stub = server_bundle_pb2_grpc.BundleStub(link.channel)
            message = await stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=RPC_TIMEOUT_SECONDS)
            bundle, chain = bundle_from_wire(message), link.relay.server_chain
        self._trust.update(self._trust.vet(bundle, chain))

    async def look(self) -> tuple[TrustBundle, timedelta | BurgeeError]:
        """The server's bundle, and its time less ours (or why it does not tell it), asked as nobody in particular."""
        async with self._link(None) as link:
            stub = server_bundle_pb2_grpc.BundleStub(link.channel)
            served = bundle_from_wire(
                await stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=RPC_TIMEOUT_SECONDS)
            )
            before = self._clock.now()
            try:
                told = await node_pb2_grpc.NodeStub(link.channel).GetTime(
                    node_pb2.GetTimeRequest(), timeout=RPC_TIMEOUT_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                return served, await link.explain(error)
            half = (self._clock.now() - before) / 2
            return served, datetime.fromtimestamp(told.now_micros / 1e6, UTC) - (before + half)

    async def attest(self, attestor: str, prover: NodeProver) -> AgentSvid:
        """Proves the node and comes back with its SVID under a fresh key. The key never leaves this agent.

        The key is kept while no answer came, sealed, before anybody is asked: evidence that can be used once is bound
        to it by then, and may bring the SVID for it once more, to this process or the next.
        """
        if self._attesting is None:
            self._attesting = await asyncio.to_thread(self._attesting_key)
        key = self._attesting
        params = server_agent_pb2.AttestAgentRequest.Params(
            data=types_pb2.AttestationData(type=attestor, payload=await prover.payload()),
            params=server_agent_pb2.AgentX509SVIDParams(csr=agent_request(key.private)),
        )
        async with self._link(None, refused=partial(_refused, attestor)) as link:
            stub = server_agent_pb2_grpc.AgentStub(link.channel)
            result = await _converse(stub.AttestAgent(timeout=RPC_TIMEOUT_SECONDS), params, prover)
        self._attesting = None
        return self._accept(result.svid, key, reattestable=result.reattestable)

    def _attesting_key(self) -> WorkloadKey:
        kind = self._config.key_type
        if self._store is None:
            return generate(kind)
        found = self._store.load_attesting(kind)
        if found is not None:
            return restored(found)
        key = generate(kind)
        try:
            self._store.save_attesting(kind, key.pkcs8)
        except FailedPrecondition as error:  # as good as without; that the disk takes nothing is told of the SVID
            log.warning("key not saved", reason=error.reason, detail=error.detail)
        return key

    async def renew(self, svid: AgentSvid) -> AgentSvid:
        """The same identity with a fresh key and a new life."""
        key = await asyncio.to_thread(generate, self._config.key_type)
        request = server_agent_pb2.RenewAgentRequest(
            params=server_agent_pb2.AgentX509SVIDParams(csr=agent_request(key.private))
        )
        async with self._link(svid) as link:
            stub = server_agent_pb2_grpc.AgentStub(link.channel)
            answer = await stub.RenewAgent(request, timeout=RPC_TIMEOUT_SECONDS)
        renewed = self._accept(answer.svid, key, reattestable=svid.reattestable)
        if renewed.id != svid.id:
            raise Unauthenticated(f"the server renewed `{svid.id}` as `{renewed.id}`", reason="AGENT_SVID_UNUSABLE")
        return renewed

    @asynccontextmanager
    async def _link(
        self,
        svid: AgentSvid | None,
        *,
        first: bool = False,
        refused: Callable[[BurgeeError], BurgeeError] = lambda error: error,
    ) -> AsyncIterator[ServerLink]:
        link = await ServerLink.open(config=self._config, trust=self._trust, clock=self._clock, svid=svid, first=first)
        try:
            yield link
        except grpc.aio.AioRpcError as error:
            raise refused(await link.explain(error)) from error
        finally:
            await link.close()

    def _accept(self, message: types_pb2.X509SVID, key: WorkloadKey, *, reattestable: bool) -> AgentSvid:
        """What the server made must be ours: an agent's ID, our key, a chain to the bundle we hold."""
        chain, now, bundle = tuple(message.cert_chain), self._clock.now(), self._trust.bundle
        if bundle is None:
            raise Unauthenticated("the trust bundle was dropped meanwhile", reason="NO_TRUST_BUNDLE")
        found = parse_x509_svid(chain)
        # A server whose clock is ahead must not cost us a token that has been used up: it becomes valid soon.
        moment = max(now, found.not_before)
        found = verify_x509_svid(chain, {bundle.trust_domain: bundle}, now=moment)
        if found.id.trust_domain != self._config.domain or not is_agent_path(found.id.path):
            raise Unauthenticated(
                f"the server issued `{found.id}`, which is no agent's ID", reason="AGENT_SVID_UNUSABLE"
            )
        public = x509.load_der_x509_certificate(chain[0]).public_key()
        shape = serialization.PublicFormat.SubjectPublicKeyInfo
        if public.public_bytes(serialization.Encoding.DER, shape) != key.public_der:
            raise Unauthenticated("the server issued a certificate for another key", reason="AGENT_SVID_UNUSABLE")
        return AgentSvid(
            id=found.id,
            chain=chain,
            key_der=key.pkcs8,
            issued_at=now,
            not_after=found.not_after,
            reattestable=reattestable,
        )


def agent_request(key: PrivateKey) -> bytes:
    """A PKCS#10 request, DER, without names: the server alone decides an agent's ID."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COUNTRY_NAME, "US"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIRE")]
    )
    digest = hashes.SHA384() if isinstance(getattr(key, "curve", None), ec.SECP384R1) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder(subject).sign(key, digest)
    return request.public_bytes(serialization.Encoding.DER)


async def _converse(
    call: grpc.aio.StreamStreamCall[server_agent_pb2.AttestAgentRequest, server_agent_pb2.AttestAgentResponse],
    params: server_agent_pb2.AttestAgentRequest.Params,
    prover: NodeProver,
) -> server_agent_pb2.AttestAgentResponse.Result:
    """Answers challenges until the result comes."""
    await call.write(server_agent_pb2.AttestAgentRequest(params=params))
    for _ in range(MAX_CHALLENGES):
        answer = await call.read()
        if not isinstance(answer, server_agent_pb2.AttestAgentResponse):
            await call.wait_for_connection()  # raises the status that the server ended the stream with
            raise Unauthenticated("the server ended the attestation without a result", reason="ATTESTATION_NO_RESULT")
        if answer.WhichOneof("step") == "result":
            await call.done_writing()
            return answer.result
        response = await prover.answer(answer.challenge)
        if not call.done():  # else the next read says how the server ended it
            await call.write(server_agent_pb2.AttestAgentRequest(challenge_response=response))
    call.cancel()
    raise Unauthenticated("the server keeps asking", reason="ATTESTATION_NO_RESULT")


class NoMoreProof(FailedPrecondition):
    """This node must attest again and cannot: nothing was sent."""


def no_more_proof(attestor: str, why: BurgeeError) -> NoMoreProof:
    """It keeps the reason why the node must attest again."""
    return NoMoreProof(
        f"{why.detail}; the node attestor `{attestor}` has nothing left to prove this node with",
        reason=why.reason,
        hint=f"{_what_helps(attestor)}: the agent takes it up by itself from a file, otherwise restart it",
    )


def _refused(attestor: str, error: BurgeeError) -> BurgeeError:
    """A server's no to an attestation. The AGENT_* reasons stay what they are: the agent acts on them."""
    if error.code not in REFUSALS or error.reason.startswith("AGENT_"):
        return error
    return FailedPrecondition(
        f"the server refused this node's attestation: {error.detail} ({error.reason})",
        reason="ATTESTATION_REFUSED",
        hint=(error.hint or _what_helps(attestor)) + _at_the_server(error.request_id),
    )


def _at_the_server(request_id: str) -> str:
    return f"; on the server, `caadmin explain agent {request_id}` says what was compared" if request_id else ""


def _what_helps(attestor: str) -> str:
    if attestor == "join_token":
        return "give the node attestor a new join token (`caadmin token create`) by way of the configured source"
    return "what was compared is known to the server: `caadmin explain agent` with this node's address or ID tells it"
