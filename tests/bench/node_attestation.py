"""What it costs a server to attest a node of Kubernetes; the API server is a stand-in and a process of its own."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

from tests.bench.load import ROOT, Figures
from tests.bench.target import UNLIMITED, cpu_seconds
from tests.support.pair import Pair, until
from tests.support.server import Caller, attest, make_csr
from tests.support.tls_client import TlsClient

CALLS = 200
CALLERS = 4


def k8s_psat(rounds: int) -> Figures:
    """CPU of the server's process for one attestation; each agent connects for it alone, four at a time."""
    with tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch, _api_server(Path(scratch)) as folder:
        cluster = {
            "kube_config_file": str(folder / "kubeconfig"),
            "service_account_allow_list": ["spire:agent"],
            "allowed_node_label_keys": ["zone"],
        }
        payload = json.dumps({"cluster": "demo", "token": (folder / "token").read_text()}).encode()
        server = Pair(
            Path(scratch), server=UNLIMITED | {"node_attestors": {"k8s_psat": {"clusters": {"demo": cluster}}}}
        )
        try:
            server.start_server()
            until("there is a trust bundle", server.bundle_file.exists)
            asyncio.run(_attestations(server, payload, 20))
            costs = [_cost_ms(server, payload) for _ in range(rounds)]
        finally:
            server.close()
    return {"k8s_psat_cpu_ms": statistics.median(costs)}


def _cost_ms(server: Pair, payload: bytes) -> float:
    before = cpu_seconds(server.pid("server"))
    asyncio.run(_attestations(server, payload, CALLS))
    return (cpu_seconds(server.pid("server")) - before) / CALLS * 1e3


async def _attestations(server: Pair, payload: bytes, count: int) -> None:
    certificates = load_pem_x509_certificates(server.bundle_file.read_bytes())
    roots = [certificate.public_bytes(Encoding.DER) for certificate in certificates]

    async def agent() -> None:
        async with TlsClient(("127.0.0.1", server.port), roots=roots) as tls:
            await attest(Caller(tls.channel, tls), payload, make_csr(), "k8s_psat")

    for _ in range(count // CALLERS):
        await asyncio.gather(*(agent() for _ in range(CALLERS)))


@contextmanager
def _api_server(folder: Path) -> Iterator[Path]:
    """Gives the folder in which a kubeconfig and a token are."""
    command = [sys.executable, "-m", "tests.support.kube_stand_in", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the API server's stand-in did not start")
            yield folder
            process.communicate(timeout=20)  # it ends with its input, and takes its files away
        finally:
            process.kill()
