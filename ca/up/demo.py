"""The demo: web and api, each behind a real Envoy, a gateway, and the proof that web → api goes over mTLS."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ca.errors import Unavailable
from ca.up import calls, envoy_config, envoy_policy, http
from ca.up.child import Child
from ca.up.envoy import Envoy, start_envoy
from ca.up.envoy_config import INBOUND, OUTBOUND, THROUGH_GATEWAY, Peering, inbound, outbound
from ca.up.layout import Layout
from ca.up.options import DEMO_SVID_SECONDS, SERVICES, Options
from ca.up.places import Place, by_path, by_uid, can_become_others
from ca.up.policies import ALLOWED_PATH, REFUSED_PATH
from ca.up.ports import LOOPBACK
from ca.up.report import Decided, Proof
from ca.up.status import DemoStatus

_PROOF_SECONDS = 30.0


def choose_places(layout: Layout, envoy: Path) -> list[Place]:
    """A place per service: by uid where we may, by path otherwise."""
    if can_become_others():
        return by_uid(SERVICES, envoy)
    return by_path(SERVICES, envoy, layout.programs)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One running service."""

    name: str
    spiffe_id: str
    envoy: Envoy
    url: str
    through_gateway: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])

    def status(self) -> DemoStatus:
        return DemoStatus(
            name=self.name,
            spiffe_id=self.spiffe_id,
            pid=self.envoy.child.pid,
            url=self.url,
            through_gateway=self.through_gateway,
        )


class Demo:
    """Starts the services and asks them. `started` is called with each child, so that its owner can stop it."""

    def __init__(self, options: Options, layout: Layout, places: list[Place], started: Callable[[Child], None]) -> None:
        self._options = options
        self._layout = layout
        self._places = {place.name: place for place in places}
        self._started = started
        self.services: dict[str, Service] = {}

    async def start_api(self) -> Service:
        """The application, and its Envoy with an mTLS listener. Raises PartFailed."""
        place = self._prepare("api")
        directory = self._layout.service("api")
        socket = directory / "application.sock"
        socket.unlink(missing_ok=True)
        uid = [] if place.uid is None else [str(place.uid)]
        # -I: it begins as we are, and what its later uid may have written below its HOME is no place to import from.
        arguments = [sys.executable, "-I", "-m", "ca.up.application", str(socket), *uid]
        application = await Child.start("api application", arguments, log=self._layout.log("api"), home=directory)
        self._started(application)
        await application.until("it did not open its socket", lambda: _exists(socket), seconds=10)
        envoy = await self._envoy(place, inbound(self._peering("api", "web"), socket, envoy_policy.sidecar("api")))
        return self._add("api", envoy, f"https://{LOOPBACK}:{await envoy.port(INBOUND)}/")

    async def start_gateway(self) -> Service:
        """The Envoy before api that asks about every request. Raises PartFailed."""
        config = envoy_config.gateway(
            self._peering("gateway", "api"), self.services["api"].port, envoy_policy.gateway("gateway")
        )
        envoy = await self._envoy(self._prepare("gateway"), config)
        return self._add("gateway", envoy, f"https://{LOOPBACK}:{await envoy.port(INBOUND)}/")

    async def start_web(self) -> Service:
        """The Envoy whose plaintext listeners lead to api over mTLS: at once, and through the gateway.

        Raises PartFailed.
        """
        through = (self._peering("web", "gateway"), self.services["gateway"].port)
        config = outbound(self._peering("web", "api"), self.services["api"].port, through)
        envoy = await self._envoy(self._prepare("web"), config)
        urls = [f"http://{LOOPBACK}:{await envoy.port(name)}/" for name in (OUTBOUND, THROUGH_GATEWAY)]
        return self._add("web", envoy, *urls)

    async def prove(self, status: int = 200) -> Proof:
        """One request web → api. Raises PartFailed when it does not end with `status`, or others than the two expected
        IDs are seen."""
        web = self.services["web"].envoy.child
        failed = "no request reached api over mTLS"
        return await web.until(failed, lambda: self._proof(status), seconds=_PROOF_SECONDS)

    async def prove_policies(self) -> Proof:
        """Requests web → api by each way. Raises PartFailed when one is not allowed or refused as the policies say."""
        web = self.services["web"].envoy.child
        decisions = await web.until("no policy decided", self._decisions, seconds=_PROOF_SECONDS)
        return replace(await self.prove(decisions[0].status), decisions=decisions)

    async def _decisions(self) -> tuple[Decided, ...]:
        web = self.services["web"]
        ways = calls.ways(self._options, direct=web.url, through_gateway=web.through_gateway)
        asked = [(way, path) for way in ways for path in (ALLOWED_PATH, REFUSED_PATH)]
        return tuple([await calls.decided(way, path, self._layout) for way, path in asked])

    async def request_status(self) -> int:
        """The status of a request now; 0 when there was no answer."""
        try:
            return (await self._request()).status
        except Unavailable:
            return 0

    async def _proof(self, status: int) -> Proof | None:
        response = await self._request()
        if response.status != status:
            raise Unavailable(f"web's Envoy answered {response.status}: {response.body[:200].decode(errors='replace')}")
        seen = (response.headers.get("x-demo-client", ""), response.headers.get("x-demo-server", ""))
        expected = tuple(str(self._options.service_id(name)) for name in ("web", "api"))
        certificate = await self.services["web"].envoy.certificate()
        if seen != expected or certificate is None:
            raise Unavailable(f"the Envoys saw `{seen[0]}` and `{seen[1]}`")
        return Proof(
            url=self._url,
            status=response.status,
            client_id=seen[0],
            server_id=seen[1],
            tls_version=response.headers.get("x-demo-tls", ""),
            svid_not_after=certificate.not_after.isoformat(),
            svid_remaining_seconds=int((certificate.not_after - datetime.now(UTC)).total_seconds()),
            svid_ttl_seconds=DEMO_SVID_SECONDS,
        )

    @property
    def _url(self) -> str:
        return self.services["web"].url.rstrip("/") + ALLOWED_PATH

    async def _request(self) -> http.Response:
        return await http.get((LOOPBACK, self.services["web"].port), ALLOWED_PATH)

    async def _envoy(self, place: Place, config: dict[str, object]) -> Envoy:
        envoy = await start_envoy(place, config, self._layout)
        self._started(envoy.child)
        return envoy

    def _prepare(self, name: str) -> Place:
        """Its directory, which it owns: nobody else needs to look inside."""
        place = self._places[name]
        directory = self._layout.service(name)
        directory.mkdir(mode=0o700, exist_ok=True)
        if place.uid is not None:
            os.chown(directory, place.uid, place.uid)
        (directory / "admin.sock").unlink(missing_ok=True)
        return place

    def _peering(self, own: str, peer: str) -> Peering:
        return Peering(
            name=own,
            own_id=str(self._options.service_id(own)),
            peer_id=str(self._options.service_id(peer)),
            trust_domain_id=str(self._options.trust_domain.id),
            workload_socket=self._layout.workload_socket,
            admin_socket=self._layout.service(own) / "admin.sock",
        )

    def _add(self, name: str, envoy: Envoy, url: str, through_gateway: str = "") -> Service:
        own_id = str(self._options.service_id(name))
        service = Service(name=name, spiffe_id=own_id, envoy=envoy, url=url, through_gateway=through_gateway)
        self.services[name] = service
        return service


async def _exists(path: Path) -> bool:
    return path.exists()
