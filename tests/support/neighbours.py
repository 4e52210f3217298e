"""Processes of other users and cgroups: one that does its worst to an agent, and one that only wants its SVIDs.

Run as `python -m tests.support.neighbours hostile|neighbour SOCKET UID`; all print JSON lines.
Giving a process another user or cgroup needs root: `other_user`, `cgroups`.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from ca.proto.burgee import workload_pb2 as wl
from tests.support.h2_abuse import ABUSES, become
from tests.support.launching import in_cgroup
from tests.support.real import require

CONNECTIONS = 5000
HEADER = (("workload.spiffe.io", "true"),)
ROOT = Path(__file__).parents[2]


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


# --- in the other process ---------------------------------------------------------------------------------------------


def neighbour(path: str) -> None:
    """Each X.509-SVID as it comes: when, and for how long it is good."""
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        call = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID", response_deserializer=wl.X509SVIDResponse.FromString
        )
        for message in call(b"", metadata=HEADER):
            leaf = x509.load_der_x509_certificate(message.svids[0].x509_svid[: _length(message.svids[0].x509_svid)])
            _say(at=time.time(), not_after=leaf.not_valid_after_utc.timestamp())


def _length(chain: bytes) -> int:
    """Of the first of several DER certificates (all of ours have two length bytes)."""
    return 4 + int.from_bytes(chain[2:4], "big")


def hostile(path: str) -> None:
    """Holds as many of 5,000 connections as it gets and comes again whenever one is closed; asks without end for
    JWT-SVIDs of new audiences; opens streams and never reads."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for number in range(4):
        threading.Thread(target=_audiences, args=(path, number), daemon=True).start()
    threading.Thread(target=_streams, args=(path,), daemon=True).start()
    _hold(path)


def _hold(path: str) -> None:
    watched = selectors.DefaultSelector()
    opened = 0
    said = 0.0
    while True:
        for _ in range(50):
            if len(watched.get_map()) < CONNECTIONS:
                opened += _open(path, watched)
        for key, _ in watched.select(0.005):
            sock: Any = key.fileobj
            try:
                gone = not sock.recv(4096)
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                watched.unregister(sock)
                sock.close()
        if time.monotonic() - said > 0.5:
            said = time.monotonic()
            _say(held=len(watched.get_map()), opened=opened)


def _open(path: str, watched: selectors.BaseSelector) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        sock.connect(path)
        sock.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    except OSError:
        sock.close()
        return 0
    watched.register(sock, selectors.EVENT_READ)
    return 1


def _channel(path: str) -> grpc.Channel:
    return grpc.insecure_channel(
        f"unix:{path}", options=[("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    )


def _audiences(path: str, number: int) -> None:
    count = 0
    while True:
        with _channel(path) as channel:
            call = channel.unary_unary(
                "/SpiffeWorkloadAPI/FetchJWTSVID", request_serializer=wl.JWTSVIDRequest.SerializeToString
            )
            flying: list[Any] = []
            for _ in range(500):
                count += 1
                request = wl.JWTSVIDRequest(audience=[f"{number}-{count}-{n}" for n in range(16)])
                flying.append(call.future(request, metadata=HEADER, timeout=20))
                if len(flying) >= 100:
                    flying.pop(0).exception()


def _streams(path: str) -> None:
    while True:
        with _channel(path) as channel:
            call = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
            flying = [call(b"", metadata=HEADER) for _ in range(3000)]
            time.sleep(5)
            del flying


# --- in the test ------------------------------------------------------------------------------------------------------


class Neighbour:
    """A process of ours under another user or in another cgroup; `lines` are what it has said."""

    def __init__(self, role: str, path: Path, *, uid: int | None = None, cgroup: Path | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        module = "h2_abuse" if role in ABUSES else "neighbours"
        command = [sys.executable, "-m", f"tests.support.{module}", role, str(path), str(uid or os.getuid())]
        self.process = subprocess.Popen(
            command if cgroup is None else in_cgroup(command, cgroup),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self.lines.append(json.loads(line))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


def other_user() -> None:
    """Skips where this test cannot become somebody else."""
    require("root", os.geteuid() == 0, "run the tests as root: they become other users")


@contextmanager
def cgroups(*names: str) -> Iterator[list[Path]]:
    """Cgroups of these names (as services have), in whichever hierarchy can be written; skips where none can."""
    made: list[Path] = []
    try:
        for name in names:
            made.append(_make(f"burgee-{os.getpid()}-{name}.service"))
        yield made
    finally:
        for path in made:
            for _ in range(50):
                try:
                    path.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)  # its last process is just ending


def _make(name: str) -> Path:
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/memory")):
        if (root / "cgroup.procs").exists() and os.access(root, os.W_OK):
            path = root / name
            try:
                path.mkdir()
            except OSError:
                continue
            return path
    require("cgroups", False, "run the tests as root where /sys/fs/cgroup can be written")
    raise AssertionError("unreachable")


if __name__ == "__main__":
    become(int(sys.argv[3]))
    {"hostile": hostile, "neighbour": neighbour}[sys.argv[1]](sys.argv[2])
