"""`status.json`: where the parts of a running `burgee up` are, for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ca.runtime.files import atomic_write


@dataclass(kw_only=True)
class ServerStatus:
    pid: int
    address: str
    admin_socket: str
    metrics_address: str
    bundle_file: str


@dataclass(kw_only=True)
class AgentStatus:
    pid: int
    spiffe_id: str
    workload_socket: str
    admin_socket: str
    metrics_address: str


@dataclass(kw_only=True)
class DemoStatus:
    name: str
    spiffe_id: str
    pid: int
    url: str
    through_gateway: str = ""
    """Another URL of the same, from which the way to api leads through the gateway; of web alone."""


@dataclass(kw_only=True)
class Status:
    """The whole file. Parts are null until they are up; `ready` is true once all of them are."""

    trust_domain: str
    server: ServerStatus | None = None
    agent: AgentStatus | None = None
    demo: list[DemoStatus] = field(default_factory=list)
    ready: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        """Replace the file atomically; a reader sees the old contents or the new."""
        atomic_write(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode(), 0o644)
