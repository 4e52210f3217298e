"""Other people's clients against our agent: py-spiffe as its users use it, and OpenSSL on what we issue."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from cryptography.x509 import load_der_x509_certificate

from ca.proto.burgee import workload_pb2
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until
from tests.support.real import require

pytestmark = pytest.mark.xdist_group("clients")
ID = f"spiffe://{TRUST_DOMAIN}/client"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with pair() as running:
        running.create_entry("/client", x509_svid_ttl=10, jwt_svid_ttl=60)
        yield running


class Events:
    """The JSON lines of a spiffe_client process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.Queue[dict] = queue.Queue()
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put(json.loads(line))

    def next(self, seconds: float = 30) -> dict:
        return self._lines.get(timeout=seconds)


@contextmanager
def client(nodes: Pair, what: str) -> Iterator[Events]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.spiffe_client", str(nodes.workload_socket), what],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Events(process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_py_spiffe_x509_source_follows_rotation(nodes: Pair) -> None:
    """10 s SVIDs: the source shows a second serial without being asked."""
    with client(nodes, "x509") as events:
        first = events.next()
        assert (first["id"], first["roots"], first["chain"]) == (ID, 1, 1)
        serials = {first["serial"]}
        while len(serials) < 2:
            serials.add(events.next()["serial"])


def test_py_spiffe_jwt_source_fetches_and_validates(nodes: Pair) -> None:
    """The token verifies locally with the JWT bundle and remotely by ValidateJWTSVID."""
    with client(nodes, "jwt") as events:
        assert events.next() == {"id": ID, "keys": 1, "validated": ID}


def test_py_spiffe_watcher_sees_entries_come_and_go(nodes: Pair) -> None:
    """Every message is the whole truth: a second identity appears and disappears."""
    second = f"spiffe://{TRUST_DOMAIN}/second"
    with client(nodes, "watch") as events:
        assert events.next()["ids"] == [ID]
        entry = nodes.create_entry("/second")
        while second not in events.next().get("ids", []):
            continue
        nodes.delete_entry(entry)
        while second in events.next().get("ids", []):
            continue


def _fetch(nodes: Pair) -> workload_pb2.X509SVIDResponse:
    with grpc.insecure_channel(f"unix:{nodes.workload_socket}") as channel:
        call = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.X509SVIDResponse.FromString,
        )
        stream = call(workload_pb2.X509SVIDRequest(), metadata=[("workload.spiffe.io", "true")], timeout=20)
        first = next(stream)
        stream.cancel()
        return first


def test_openssl_verifies_what_we_issue(nodes: Pair, tmp_path: Path) -> None:
    """`openssl verify -x509_strict` accepts leaf and root for both purposes; the key belongs to the leaf."""
    require("openssl", shutil.which("openssl") is not None, "apt-get install openssl")
    svid = _fetch(nodes).svids[0]
    root = load_der_x509_certificate(svid.bundle)
    leaf = load_der_x509_certificate(svid.x509_svid)
    (tmp_path / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    for purpose in ("sslclient", "sslserver"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem", "leaf.pem"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert load_der_private_key(svid.x509_svid_key, None).public_key() == leaf.public_key()


def test_another_user_gets_no_identity(nodes: Pair) -> None:
    """A uid without an entry is told so, with nothing but the standard's status."""
    require("root (to become another user)", os.getuid() == 0, "run the tests as root")
    code = (
        "import grpc, sys\n"
        "c = grpc.insecure_channel('unix:' + sys.argv[1])\n"
        "call = c.unary_stream('/SpiffeWorkloadAPI/FetchX509SVID')\n"
        "try:\n    next(call(b'', metadata=[('workload.spiffe.io', 'true')], timeout=20))\n"
        "except grpc.RpcError as e:\n    print(e.code().name, e.details())\n"
    )
    # The interpreter lives where only root may look: leave root's rights inside, after the imports.
    drop = "import grpc, grpc._channel, os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    done = subprocess.run(
        [sys.executable, "-c", drop + code, str(nodes.workload_socket)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("PERMISSION_DENIED no identity issued"), done.stdout + done.stderr


def test_a_banned_agent_serves_nobody(tmp_path: Path) -> None:
    """Within seconds of a ban its workloads get nothing, and its sealed state is gone."""
    with pair() as banned:
        banned.create_entry("/client")
        assert _fetch(banned).svids
        banned.ban_agent()
        until("the agent knows", lambda: banned.status().state == "BANNED", seconds=10)
        with pytest.raises(grpc.RpcError) as refused:
            _fetch(banned)
        assert refused.value.code() in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE}
