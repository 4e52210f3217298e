"""One running demo Envoy: started as its service, asked about its listener and its certificate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ca.errors import Unavailable
from ca.runtime.files import atomic_write
from ca.up import http
from ca.up.child import Child
from ca.up.layout import Layout
from ca.up.places import Place

START_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What an Envoy holds: serial in hexadecimal, lifetime in UTC."""

    spiffe_id: str
    serial: str
    not_before: datetime
    not_after: datetime


class Envoy:
    """A child with an admin socket."""

    def __init__(self, child: Child, admin_socket: Path) -> None:
        self.child = child
        self.admin_socket = admin_socket

    async def port(self, listener: str) -> int:
        """The port of `listener`, once it accepts connections: Envoy shows it only when its secrets have come."""
        waiting = "it opened no listener (for which it needs certificates from the agent)"
        return await self.child.until(waiting, lambda: self._port(listener), seconds=START_SECONDS)

    async def certificate(self) -> Certificate | None:
        """The certificate it presents now, or None while it has none. Raises Unavailable."""
        for loaded in (await self._admin("/certs")).get("certificates", []):
            for shown in loaded.get("cert_chain", []):
                names = [name["uri"] for name in shown.get("subject_alt_names", []) if "uri" in name]
                if names:
                    return Certificate(
                        spiffe_id=names[0],
                        serial=shown["serial_number"],
                        not_before=datetime.fromisoformat(shown["valid_from"]),
                        not_after=datetime.fromisoformat(shown["expiration_time"]),
                    )
        return None

    async def _port(self, listener: str) -> int | None:
        ready = await http.get(self.admin_socket, "/ready")
        if ready.status != 200:
            return None
        for status in (await self._admin("/listeners?format=json")).get("listener_statuses", []):
            if status["name"] == listener:
                return int(status["local_address"]["socket_address"]["port_value"])
        return None

    async def _admin(self, path: str) -> dict[str, Any]:
        response = await http.get(self.admin_socket, path)
        if response.status != 200:
            raise Unavailable(f"Envoy answered {response.status} to {path}")
        parsed: dict[str, Any] = json.loads(response.body)
        return parsed


async def start_envoy(place: Place, config: dict[str, Any], layout: Layout) -> Envoy:
    """Start Envoy at `place`; its directory under `layout.run` must exist. Raises PartFailed."""
    directory = layout.service(place.name)
    file = directory / "envoy.json"
    atomic_write(file, json.dumps(config, indent=2).encode(), 0o644)
    # No hot restart: several Envoys then need neither base ids nor shared memory.
    flags = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    arguments = [str(place.program), "--config-path", str(file), *flags]
    log = layout.log(f"envoy-{place.name}")
    child = await Child.start(place.name, arguments, log=log, uid=place.uid, home=directory)
    return Envoy(child, directory / "admin.sock")
