"""A server without an agent as a process of its own, and an agent of it that never stops asking for SVIDs."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ca.identity.bundle_pem import parse_certificates
from ca.identity.certificate import is_issued_by
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc, server_entry_pb2, server_entry_pb2_grpc
from ca.proto.spire import server_svid_pb2 as svid_pb2
from tests.support.operators import Operator, refused
from tests.support.pair import TRUST_DOMAIN, Pair, free_port, until
from tests.support.server import Caller, Identity, attest, entry, make_csr, spiffe_id
from tests.support.tls_client import TlsClient

EVERY_SECONDS = 0.2
NODE = "/node"


class LoneServer(Pair):
    """A server that says all that it has to say, with an entry below every agent of NODE."""

    def __init__(self, home: Path, *, ca_seconds: int, svid_seconds: int, **options: Any) -> None:
        self._status = f"127.0.0.1:{free_port()}"
        common = {
            "ca_ttl_seconds": ca_seconds,
            "x509_svid_ttl_seconds": svid_seconds,
            "jwt_svid_ttl_seconds": svid_seconds,
            "agent_ttl_seconds": svid_seconds,
            "consumer_waits": {"files_seconds": 0},
            "metrics_address": self._status,
            "log": {"format": "json", "level": "debug"},
        }
        super().__init__(home, server=common | options)
        self.svid_seconds = svid_seconds
        self.operator = Operator(self.admin_socket)
        self.entry_id = ""

    def log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")

    def ready(self, tell: str = "reason") -> tuple[int, dict[str, str]]:
        """HTTP status, and what is wrong or only warned of, check → reason, or what else is to be told of it."""
        answer = httpx.get(f"http://{self._status}/ready", timeout=10)
        body = answer.json()
        shown = [*body["problems"], *body.get("warnings", ())]
        return answer.status_code, {one["check"]: one[tell] for one in shown}

    def signs_until(self) -> datetime:
        return datetime.fromtimestamp(self.operator.state().active.expires_at, UTC)

    def token(self) -> str:
        """For an agent of NODE."""
        request = server_agent_pb2.CreateJoinTokenRequest(ttl=600, agent_id=spiffe_id(NODE, TRUST_DOMAIN))
        with self._channel(self.admin_socket) as channel:
            answer = server_agent_pb2_grpc.AgentStub(channel).CreateJoinToken(request, timeout=10)
        return str(answer.value)

    async def attested(self, key: Any) -> Identity:
        """Another agent of NODE."""
        async with TlsClient(("127.0.0.1", self.port), roots=self.roots()) as stranger:
            token = await asyncio.to_thread(self.token)
            result = await attest(Caller(stranger.channel), token.encode(), make_csr(key))
        return Identity(path=result.svid.id.path, chain=tuple(result.svid.cert_chain), key=key)

    def make_entry(self) -> None:
        """Below every agent of NODE."""
        made = entry("/web", NODE)
        for one in (made.spiffe_id, made.parent_id):
            one.trust_domain = TRUST_DOMAIN
        with self._channel(self.admin_socket) as channel:
            stub = server_entry_pb2_grpc.EntryStub(channel)
            answer = stub.BatchCreateEntry(server_entry_pb2.BatchCreateEntryRequest(entries=[made]), timeout=10)
        assert answer.results[0].status.code == 0
        self.entry_id = answer.results[0].entry.id

    def roots(self) -> list[bytes]:
        return list(parse_certificates(self.bundle_file.read_bytes()))

    def key_numbers(self) -> set[int]:
        """The private keys that it has now."""
        numbers = set()
        for path in (self.home / "server" / "keys").glob("*.pem"):
            with suppress(FileNotFoundError):
                key = load_pem_private_key(path.read_bytes(), None)
                assert isinstance(key, ec.EllipticCurvePrivateKey)
                numbers.add(key.private_numbers().private_value)
        return numbers


class Workloads(threading.Thread):
    """An agent that asks for an X.509- and a JWT-SVID every 0.2 s, and attests anew before its own ends."""

    def __init__(self, server: LoneServer) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._entry_id = server.entry_id
        self._done = threading.Event()
        self.issued = 0
        self.attested = 0
        self.slowest = 0.0
        self.shortest = timedelta(days=1)
        self.failed: list[str] = []

    def run(self) -> None:
        asyncio.run(self._agents())

    def finish(self) -> None:
        self._done.set()
        self.join(30)
        print(
            f"{self.issued} SVIDs of each kind, {len(self.failed)} failures, {self.attested} attestations, "
            f"slowest {self.slowest * 1000:.0f} ms, shortest life {self.shortest.total_seconds():.0f} s"
        )

    @staticmethod
    def _words(error: Exception) -> str:
        return str(refused(error)) if isinstance(error, grpc.RpcError) else repr(error)

    async def _agents(self) -> None:
        while not self._done.is_set():
            try:
                await self._one_agent()
            except Exception as error:
                self.failed.append(f"{datetime.now(UTC):%H:%M:%S} {self._words(error)}")
                await asyncio.sleep(EVERY_SECONDS)

    async def _one_agent(self) -> None:
        server, key = self._server, ec.generate_private_key(ec.SECP256R1())
        me = await server.attested(key)
        self.attested += 1
        address, roots = ("127.0.0.1", server.port), server.roots()
        async with TlsClient(address, roots=roots, chain=me.chain, key=key) as tls:
            caller, until_then = Caller(tls.channel), time.monotonic() + server.svid_seconds / 2
            while time.monotonic() < until_then and not self._done.is_set():
                began = time.monotonic()
                await self._ask(caller)
                took = time.monotonic() - began
                self.slowest = max(self.slowest, took)
                await asyncio.sleep(max(0.0, EVERY_SECONDS - took))

    async def _ask(self, caller: Caller) -> None:
        params = [svid_pb2.NewX509SVIDParams(entry_id=self._entry_id, csr=make_csr())]
        batch = await caller.svids.BatchNewX509SVID(svid_pb2.BatchNewX509SVIDRequest(params=params), timeout=10)
        (result,) = batch.results
        assert result.status.code == 0, result.status.message
        self._check(result.svid.cert_chain)
        request = svid_pb2.NewJWTSVIDRequest(entry_id=self._entry_id, audience=["somebody"])
        assert (await caller.svids.NewJWTSVID(request, timeout=10)).svid.token.count(".") == 2
        self.issued += 1

    def _check(self, chain: Sequence[bytes]) -> None:
        """Up to a root of the bundle; and it can be used for a while."""
        for child, above in pairwise(chain):
            assert is_issued_by(child, above)
        assert any(is_issued_by(chain[-1], root) for root in self._server.roots())
        left = min(x509.load_der_x509_certificate(der).not_valid_after_utc for der in chain) - datetime.now(UTC)
        assert left > timedelta()
        self.shortest = min(self.shortest, left)


@contextmanager
def lone_server(*, ca_seconds: int, svid_seconds: int, **options: Any) -> Iterator[LoneServer]:
    """Running, and gone afterwards; its log is printed when the test fails."""
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    made = LoneServer(home, ca_seconds=ca_seconds, svid_seconds=svid_seconds, **options)
    try:
        made.start_server()
        made.make_entry()
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def workloads(server: LoneServer) -> Iterator[Workloads]:
    """From the first SVIDs on."""
    asking = Workloads(server)
    asking.start()
    try:
        until("SVIDs are issued", lambda: asking.issued > 2)
        yield asking
    finally:
        asking.finish()
