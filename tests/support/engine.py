"""A container engine as its clients see it: the Engine API over a Unix socket, with the inspect documents that Docker
28 and podman 5 give, as far as anything reads them."""

from __future__ import annotations

import json
import os
import socketserver
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

Container = dict[str, Any]


def docker_container(container_id: str, **config: Any) -> Container:
    """As `GET /containers/{id}/json` of Docker 28 (API 1.50) for `docker run --label app=web --env TIER=front`."""
    return {
        "Id": container_id,
        "Created": "2026-07-01T08:15:30.123456789Z",
        "Path": "/docker-entrypoint.sh",
        "Args": ["nginx", "-g", "daemon off;"],
        "State": {
            "Status": "running",
            "Running": True,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": os.getpid(),
            "ExitCode": 0,
            "Error": "",
            "StartedAt": "2026-07-01T08:15:31.000000001Z",
            "FinishedAt": "0001-01-01T00:00:00Z",
        },
        "Image": f"sha256:{'ab' * 32}",
        "Name": "/web",
        "RestartCount": 0,
        "Driver": "overlay2",
        "Platform": "linux",
        "HostConfig": {"NetworkMode": "bridge", "CgroupnsMode": "private", "PidMode": "", "Privileged": False},
        "GraphDriver": {"Name": "overlay2", "Data": {}},
        "Mounts": [],
        "Config": {
            "Hostname": container_id[:12],
            "User": "",
            "ExposedPorts": {"80/tcp": {}},
            "Env": ["TIER=front", "TOKEN=s3cret", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["nginx", "-g", "daemon off;"],
            "Image": "registry.example.org/web:1.4",
            "Volumes": None,
            "WorkingDir": "/",
            "Entrypoint": ["/docker-entrypoint.sh"],
            "OnBuild": None,
            "Labels": {"app": "web", "org.opencontainers.image.vendor": "Example: Ltd"},
            **config,
        },
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
    }


def podman_container(container_id: str, **config: Any) -> Container:
    """As podman's compatible API gives it: no algorithm before the image's digest, and null for what is not there."""
    container = docker_container(container_id, **{"Labels": None, "Env": None, **config})
    container |= {"Image": "cd" * 32, "GraphDriver": None, "Driver": "overlay"}
    return container


class StandInEngine:
    """Serves `containers`, by id, at `path` until `close`. `answer`, where it is set, gives (status, body) instead."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(tempfile.mkdtemp(prefix="engine-")) / "engine.sock"
        self.containers: dict[str, Container] = {}
        self.answer: Callable[[str], tuple[int, bytes]] | None = None
        self.asked: list[str] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._server = _Server(str(self.path), self._respond)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def runs(self, container: Container) -> Container:
        self.containers[container["Id"]] = container
        return container

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)

    def _respond(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        if self.answer is not None:
            return self.answer(path)
        if path == "/_ping":
            return 200, b"OK"
        container = self.containers.get(path.removeprefix("/containers/").removesuffix("/json"))
        if container is None:
            return 404, b'{"message":"No such container"}\n'
        return 200, json.dumps(container).encode()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, respond: Callable[[str], tuple[int, bytes]]) -> None:
        self.respond = respond
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no fault."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        status, body = self.server.respond(self.path)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "a Unix socket"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
