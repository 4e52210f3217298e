"""The server's bad day, with a server as a process of its own: floods, a full disk, no files, a stampede."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

from ca.errors import BurgeeError
from ca.proto.spire import server_agent_pb2, server_bundle_pb2, server_svid_pb2, server_svid_pb2_grpc
from ca.runtime.rpc import error_of
from tests.support.h2_abuse import ABUSES, PREFACE, SETTINGS, frame
from tests.support.launching import limited
from tests.support.pair import TRUST_DOMAIN, Pair, free_port, until
from tests.support.real import require
from tests.support.server import Caller, attest, make_csr
from tests.support.tls_client import TlsClient, client_context

NEIGHBOUR_SECONDS = 2.0
"""Longest wait of a decent client meanwhile; a lone one waits some milliseconds."""

AGENTS = 500
STAMPEDE_MEGABYTES = 150
"""What the server may grow by while all of them return at once."""


class Lone(Pair):
    """A server without an agent."""

    files = 0

    def _start(self, name: str, module: str, config: dict[str, Any]) -> None:
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        with (self.home / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", module, "--config", str(path)]
            if self.files:
                command = limited(command, nofile=self.files)
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def roots(self) -> list[bytes]:
        return [root.public_bytes(Encoding.DER) for root in load_pem_x509_certificates(self.bundle_file.read_bytes())]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.server_options['metrics_address']}/{path}", timeout=10)

    def metric(self, name: str) -> float:
        lines = (line.rpartition(" ") for line in self.get("metrics").text.splitlines())
        return sum(float(value) for key, _, value in lines if key == name)

    def refused(self, reason: str) -> float:
        """Connections of the network that were refused or ended for it."""
        return self.metric(f'burgee_gate_refused_total{{listener="tcp",reason="{reason}"}}')

    def tells(self, *reasons: str) -> None:
        """/ready names these, /live is well."""
        ready = self.get("ready")
        assert [problem["reason"] for problem in ready.json()["problems"]] == list(reasons)
        assert ready.status_code == (503 if reasons else 200)
        assert self.get("live").status_code == 200

    def rss_megabytes(self) -> float:
        text = Path(f"/proc/{self.pid('server')}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024

    def log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")

    def mint(self, path: str, key: Any) -> tuple[bytes, ...]:
        request = server_svid_pb2.MintX509SVIDRequest(csr=make_csr(key, uris=[f"spiffe://{TRUST_DOMAIN}{path}"]))
        with self._channel(self.admin_socket) as channel:
            return tuple(server_svid_pb2_grpc.SVIDStub(channel).MintX509SVID(request, timeout=30).svid.cert_chain)


@contextmanager
def lone(*, files: int = 0, **options: Any) -> Iterator[Lone]:
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    made = Lone(home, server={"metrics_address": f"127.0.0.1:{free_port()}"} | options)
    made.files = files
    try:
        made.start_server()
        yield made
        assert "Traceback" not in made.log()
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Lone]:
    with lone() as made:
        yield made


def ask(server: Lone, *, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> float:
    """A decent client on one connection, again and again; its longest wait."""

    async def run() -> float:
        slowest, deadline = 0.0, time.monotonic() + seconds
        async with TlsClient(server.address, roots=server.roots) as tls:
            caller = Caller(tls.channel)
            while time.monotonic() < deadline:
                began = time.monotonic()
                await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=10)
                slowest = max(slowest, time.monotonic() - began)
                meanwhile()
                await asyncio.sleep(0.02)
        return slowest

    return asyncio.run(run())


def abuse(server: Lone, kind: str, context: ssl.SSLContext, stop: threading.Event) -> None:
    while not stop.is_set():
        with (
            suppress(OSError),
            socket.create_connection(server.address, timeout=1) as plain,
            context.wrap_socket(plain) as sock,
        ):
            sock.sendall(PREFACE + frame(SETTINGS, 0, 0))
            for piece in ABUSES[kind]():
                sock.sendall(piece)
                if stop.is_set():
                    return


@pytest.mark.parametrize("anonymous", [True, False])
def test_http2_abuse_on_the_tls_port_harms_nobody_else(server: Lone, anonymous: bool) -> None:
    """Each kind by two clients at once, with and without a certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    chain = () if anonymous else server.mint("/hostile", key)
    context = client_context(roots=server.roots, chain=chain, key=key)
    for kind in ABUSES:
        before, peak, stop = server.rss_megabytes(), 0.0, threading.Event()

        def look() -> None:
            nonlocal peak
            peak = max(peak, server.rss_megabytes())

        threads = [threading.Thread(target=abuse, args=(server, kind, context, stop)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            slowest = ask(server, seconds=0.8, meanwhile=look)
        finally:
            stop.set()
            for thread in threads:
                thread.join(5)
        print(f"{kind}: slowest neighbour {slowest:.2f} s; {before:.0f} → {peak:.0f} MB")
        assert slowest < NEIGHBOUR_SECONDS, kind
        assert peak - before < 100, kind
    server.tells()
    assert server.refused("HEADERS_TOO_LARGE") > 0
    assert "HEADERS_TOO_LARGE" in server.log()
    if anonymous:
        assert server.refused("ANONYMOUS_TOO_MUCH") > 0
    until("nothing is left of it", lambda: server.metric('burgee_gate_connections{listener="tcp"}') == 0)


def test_old_tls_is_turned_away_counted_and_logged(server: Lone) -> None:
    before = server.refused("HANDSHAKE_FAILED")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(server.address) as plain, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(plain)
    until("the old TLS is counted", lambda: server.refused("HANDSHAKE_FAILED") > before)
    assert "HANDSHAKE_FAILED" in server.log()
    server.tells()


def hello(context: ssl.SSLContext) -> bytes:
    """The first bytes of a TLS client."""
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=None).do_handshake()
    return out.read()


class Slow:
    """A client that sends `data` one byte after the other, each time it is asked whether it was sent away."""

    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self.sock, self._data = sock, iter(data)
        sock.settimeout(0.05)

    def sent_away(self) -> bool:
        try:
            if (byte := next(self._data, None)) is not None:
                self.sock.sendall(bytes([byte]))
            while self.sock.recv(4096):
                pass  # session tickets, settings
        except TimeoutError:
            return False
        except OSError:
            return True
        return True


@pytest.mark.slow
def test_silent_and_slow_clients_are_sent_away(server: Lone) -> None:
    """Ten seconds for the handshake, ten for the first bytes, twenty for the first frames; a decent one may be idle."""
    context = client_context(roots=server.roots)
    before = {reason: server.refused(reason) for reason in ("HANDSHAKE_TIMEOUT", "FIRST_BYTES_TIMEOUT")}
    with ExitStack() as stack:

        def connected(*, tls: bool) -> socket.socket:
            plain = stack.enter_context(socket.create_connection(server.address))
            return stack.enter_context(context.wrap_socket(plain)) if tls else plain

        began = time.monotonic()
        slow = [
            Slow(connected(tls=False), b""),
            Slow(connected(tls=False), hello(context)),
            Slow(connected(tls=True), b""),
        ]
        dripping = Slow(connected(tls=True), PREFACE)
        decent = connected(tls=True)
        decent.sendall(PREFACE + frame(SETTINGS, 0, 0))

        def gone() -> bool:
            return [dripping.sent_away(), *(one.sent_away() for one in slow)][1:] == [True] * len(slow)

        until("those without first bytes are sent away", gone, seconds=20, every=0.5)
        assert 9 < time.monotonic() - began < 15
        until("the first frames do not come", dripping.sent_away, seconds=20, every=0.5)
        assert 19 < time.monotonic() - began < 25
        assert not Slow(decent, b"").sent_away()
    for reason, count in before.items():
        assert server.refused(reason) - count == (2 if reason == "HANDSHAKE_TIMEOUT" else 1), reason
        assert reason in server.log()
    assert ask(server, seconds=0.2) < NEIGHBOUR_SECONDS
    server.tells()


def test_stopped_for_a_while_it_goes_on(server: Lone) -> None:
    os.kill(server.pid("server"), signal.SIGSTOP)
    threading.Timer(2, os.kill, (server.pid("server"), signal.SIGCONT)).start()
    assert 1 < ask(server, seconds=3) < 5
    server.tells()


def test_out_of_files_strangers_are_turned_away_and_the_administrator_is_not() -> None:
    with lone(files=256, limits={"handshake_timeout_seconds": 300}) as server:
        with ExitStack() as stack:
            for _ in range(300):
                with suppress(OSError):
                    stack.enter_context(socket.create_connection(server.address, timeout=1))
            until("strangers are refused", lambda: server.refused("CONNECTION_LIMIT") > 100)
            assert "CONNECTION_LIMIT" in server.log()
            assert server.create_token()
            server.tells()
        until("their places are free", lambda: server.metric('burgee_gate_connections{listener="tcp"}') == 0)
        assert ask(server, seconds=0.2) < NEIGHBOUR_SECONDS


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    require("mount", os.geteuid() == 0, "run the tests as root: they mount a tmpfs")
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0755", "burgee", path], capture_output=True)
    require("mount", made.returncode == 0, "run the tests where a tmpfs can be mounted")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_is_said_and_nothing_is_issued_until_there_is_room() -> None:
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    with small_disk(home / "disk") as disk, lone(data_dir=str(disk / "server")) as server:
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            file.writelines(itertools.repeat(bytes(4096)))
        key = ec.generate_private_key(ec.SECP256R1())

        def refused() -> bool:  # what is left in the write-ahead log's file may hold a few more
            try:
                server.mint("/w", key)
            except grpc.RpcError as error:
                return bool(error.code() is grpc.StatusCode.UNAVAILABLE)  # type: ignore[attr-defined]  # the stubs
            return False

        until("nothing more is issued", refused)
        server.tells("STORE_UNAVAILABLE")
        method = 'method="/spire.api.server.svid.v1.SVID/MintX509SVID"'
        assert server.metric(f'burgee_rpc_refused_total{{{method},reason="AUDIT_UNAVAILABLE"}}') > 0
        until("it is logged", lambda: "store cannot be reached" in server.log())
        assert ask(server, seconds=0.2) < NEIGHBOUR_SECONDS
        ballast.unlink()
        until("it is ready again", lambda: server.get("ready").status_code == 200)
        assert server.mint("/w", key)
    shutil.rmtree(home, ignore_errors=True)


class Crowd:
    """Agents that all come at once, and come again when they were told to."""

    def __init__(self, server: Lone) -> None:
        self.server = server
        self.refusals: list[BurgeeError] = []
        self.waits: list[float] = []
        self.peak = 0.0

    async def return_at_once(self, tokens: list[str]) -> list[str]:
        watching = asyncio.create_task(self._watch())
        try:
            return await asyncio.gather(*(self._agent(token) for token in tokens))
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.server.rss_megabytes())
            await asyncio.sleep(0.05)

    async def _agent(self, token: str) -> str:
        csr, began = make_csr(ec.generate_private_key(ec.SECP256R1())), time.monotonic()
        async with TlsClient(self.server.address, roots=self.server.roots) as tls:
            caller = Caller(tls.channel)
            while True:
                try:
                    path = (await attest(caller, token.encode(), csr)).svid.id.path
                except grpc.aio.AioRpcError as raised:
                    error = error_of(raised)
                    self.refusals.append(error)
                    await asyncio.sleep(error.retry_after_seconds or 0.5)
                else:
                    self.waits.append(time.monotonic() - began)
                    return path


async def test_a_stampede_of_five_hundred_agents() -> None:
    """Some are told to come again, with hints that differ; the server stays small and every one gets in."""
    with lone() as server:
        async with grpc.aio.insecure_channel(f"unix:{server.admin_socket}") as channel:
            admin = Caller(channel)
            request = server_agent_pb2.CreateJoinTokenRequest(ttl=600)
            tokens = [(await admin.agents.CreateJoinToken(request)).value for _ in range(AGENTS)]
        before, crowd = server.rss_megabytes(), Crowd(server)
        paths = await crowd.return_at_once(tokens)
        busy = [error for error in crowd.refusals if error.reason == "SERVER_BUSY"]
        print(
            f"{AGENTS} agents in {max(crowd.waits):.1f} s; {len(busy)} of {len(crowd.refusals)} refusals for load; "
            f"{before:.0f} → {crowd.peak:.0f} MB"
        )
        assert sorted(paths) == sorted(f"/spire/agent/join_token/{token}" for token in tokens)
        assert server.count_agents() == AGENTS
        assert {error.reason for error in crowd.refusals} <= {"SERVER_BUSY", "RATE_LIMITED"}
        assert busy
        assert len({error.retry_after_seconds for error in busy}) > len(busy) / 4
        assert crowd.peak - before < STAMPEDE_MEGABYTES
        assert server.metric('burgee_admission_refused_total{reason="SERVER_BUSY"}') == len(busy)
        server.tells()
