"""What the gate costs: a private server with the gate before it and without (`python -m tests.bench.bench_gate`).

attach: a new connection to the first message of a stream, by the Go load program. unary: one small call, CPU of the
server process. batch: a call of the size of 500 CSRs and certificates, over TLS, CPU per item of the relay alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from ca.proto.burgee import workload_pb2
from ca.runtime import log
from ca.runtime.gate import Gate
from ca.runtime.rpc import grpc_server
from tests.bench.target import cpu_seconds, rss_mb
from tests.ca.identity import forge
from tests.ca.runtime.rig import Pki
from tests.support.tls_client import TlsClient

ROOT = Path(__file__).resolve().parents[2]
WIRE = Path(os.environ.get("BURGEE_CACHE", ROOT / ".cache")) / "bin/wire"
SVID = workload_pb2.X509SVID(
    spiffe_id="spiffe://example.org/bench", x509_svid=bytes(800), x509_svid_key=bytes(138), bundle=bytes(500)
)
ANSWER = workload_pb2.X509SVIDResponse(svids=[SVID]).SerializeToString()
BATCH = 500
CSR_BYTES, CERTIFICATE_BYTES = 320, 640


async def fetch(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield ANSWER
    await asyncio.Event().wait()


async def call(request: bytes, context: Any) -> bytes:
    return bytes(BATCH * CERTIFICATE_BYTES) if len(request) > 1000 else request


def handlers() -> tuple[grpc.GenericRpcHandler, ...]:
    return (
        grpc.method_handlers_generic_handler(
            "SpiffeWorkloadAPI", {"FetchX509SVID": grpc.unary_stream_rpc_method_handler(fetch)}
        ),
        grpc.method_handlers_generic_handler("bench.Bench", {"Call": grpc.unary_unary_rpc_method_handler(call)}),
    )


async def serve(directory: Path) -> None:
    """The measured process: a bare server, and one behind the gate with everything on."""
    log.configure(level="error")
    (directory / "p").mkdir(mode=0o700)
    bare = grpc.aio.server()
    bare.add_generic_rpc_handlers(handlers())
    bare.add_insecure_port(f"unix:{directory}/bare.sock")
    gate = Gate(grpc_socket=directory / "p" / "grpc.sock")
    private = grpc_server(directory / "p" / "grpc.sock", [gate.layer()])
    private.add_generic_rpc_handlers(handlers())
    await bare.start()
    await private.start()
    pki = Pki()
    await gate.listen_unix("bench", directory / "u" / "gate.sock")
    address = await gate.listen_tcp("bench-tls", "127.0.0.1", 0, tls=pki.material, verify_client=pki.verify)
    print(json.dumps({"port": address[1], "root": pki.roots[forge.TD].der.hex()}), flush=True)
    await asyncio.Event().wait()


def attach(sock: Path) -> dict[str, float]:
    done = subprocess.run([str(WIRE), "attach", "-sock", str(sock), "-n", "400"], capture_output=True, check=True)
    return dict(json.loads(done.stdout))


async def cost(channel: grpc.aio.Channel, pid: int, request: bytes, calls: int) -> tuple[float, float]:
    """(CPU, wall) microseconds a call."""
    method = channel.unary_unary("/bench.Bench/Call")
    for _ in range(20):
        await method(request)
    cpu, wall = cpu_seconds(pid), time.perf_counter()
    for _ in range(calls):
        await method(request)
    return (cpu_seconds(pid) - cpu) / calls * 1e6, (time.perf_counter() - wall) / calls * 1e6


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bench_gate", str(directory)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        asyncio.run(measure(directory, child))
    finally:
        child.terminate()
        child.wait()
        shutil.rmtree(directory)


async def measure(directory: Path, child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    told = json.loads(child.stdout.readline())
    sockets = {"bare": directory / "bare.sock", "gate": directory / "u" / "gate.sock"}
    if WIRE.exists():
        for name, sock in sockets.items():
            attach(sock)
            print(f"attach {name:5}", await asyncio.to_thread(attach, sock))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    for name, sock in sockets.items():
        async with grpc.aio.insecure_channel(f"unix:{sock}", options=options) as channel:
            cpu, wall = await cost(channel, child.pid, b"x", 2000)
            print(f"unary  {name:5} cpu {cpu:5.0f} us  wall {wall:5.0f} us")
            cpu, wall = await cost(channel, child.pid, bytes(BATCH * CSR_BYTES), 200)
            print(f"batch  {name:5} cpu {cpu / BATCH:5.2f} us an item  wall {wall / BATCH:5.2f} us")
    async with TlsClient(("127.0.0.1", told["port"]), roots=[bytes.fromhex(told["root"])]) as client:
        cpu, wall = await cost(client.channel, child.pid, b"x", 1000)
        print(f"unary  tls   cpu {cpu:5.0f} us  wall {wall:5.0f} us (the client's relay included in wall)")
        cpu, wall = await cost(client.channel, child.pid, bytes(BATCH * CSR_BYTES), 200)
        print(f"batch  tls   cpu {cpu / BATCH:5.2f} us an item  wall {wall / BATCH:5.2f} us")
    before = rss_mb(child.pid)
    held = [await asyncio.open_unix_connection(str(sockets["gate"])) for _ in range(400)]
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    for reader, writer in held:
        writer.write(preface)
        await reader.readexactly(9)
    print(f"memory {(rss_mb(child.pid) - before) * 1024 / len(held):.0f} KiB a connection (grpcio's part included)")
    for _, writer in held:
        writer.close()


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(serve(Path(sys.argv[1])))
    else:
        main()
