"""Programs of a real Kubernetes control plane on loopback: one etcd, and API servers that keep to a prefix of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.launching import dying_with_us
from tests.support.real import require

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(os.environ.get("BURGEE_CACHE", ROOT / ".cache")) / "bin"
HOW = "install Go 1.26, then: bash tests/support/build-go.sh"
START_SECONDS = 90.0


def need_kubernetes() -> None:
    """Skips (or fails) where the programs were not built."""
    built = all((BINARIES / name).exists() for name in ("etcd", "kube-apiserver"))
    require("Kubernetes 1.37 (etcd, kube-apiserver)", built, HOW)


def free_ports(count: int) -> list[int]:
    """Ports that are free, and each another."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Program:
    """A process whose log stands beside its data. It ends with us, however we end."""

    def __init__(self, name: str, directory: Path, arguments: Sequence[str]) -> None:
        self._name = name
        self._log = directory / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us([BINARIES / name, *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={"HOME": str(directory), "PATH": "/usr/bin:/bin"},
            )

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._name} did not {what}: {self.log[-3000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """It is to have nothing to say to anybody: killed, for what it kept is thrown away."""
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


class Etcd:
    """One for all clusters of a test process; `url` is where their API servers find it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bg-etcd-"))
        client, peer = free_ports(2)
        self.url = f"http://127.0.0.1:{client}"
        self._program = Program("etcd", self.directory, _etcd_arguments(self.url, f"http://127.0.0.1:{peer}"))
        self._program.until(lambda: _connects(client), "listen")

    def close(self) -> None:
        self._program.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def _etcd_arguments(client: str, peer: str) -> list[str]:
    return [
        "--data-dir=data",
        "--unsafe-no-fsync",  # thrown away afterwards
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    ]


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
