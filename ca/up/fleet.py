"""The parts of one `burgee up`: starts them in order, knows them, stops them in reverse."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import Any

from ca.errors import FailedPrecondition
from ca.runtime.files import atomic_write
from ca.up import admin, envoy_policy, policies
from ca.up.child import Child
from ca.up.configs import agent_config, as_yaml, server_config
from ca.up.demo import Demo
from ca.up.layout import Layout
from ca.up.options import DEMO_SVID_SECONDS, Options
from ca.up.places import Place
from ca.up.ports import LOOPBACK, free_port
from ca.up.report import Report
from ca.up.status import AgentStatus, ServerStatus, Status

SERVER_SECONDS = 30.0
AGENT_SECONDS = 30.0


class Fleet:
    """Server, agent and, with `places`, the demo. `status` is written anew as each part comes up."""

    def __init__(self, options: Options, layout: Layout, places: list[Place], report: Report) -> None:
        self.options = options
        self.layout = layout
        self.status = Status(trust_domain=options.trust_domain.name)
        self.demo = Demo(options, layout, places, self._children_add) if places else None
        self._places = places
        self._report = report
        self._children: list[Child] = []

    async def start(self, port: int) -> None:
        """Bring every part up. Raises PartFailed naming the one that did not come."""
        self.layout.create()
        self.status.write(self.layout.status)
        await self._start_server(port)
        known = await admin.known_agents(self.layout.server_admin_socket, self.options.trust_domain)
        if self.demo is None:
            await self._start_agent(known)
        else:
            revision, *_ = await asyncio.gather(
                policies.ensure(self.layout.server_admin_socket, self.options),
                self._start_agent(known),
                asyncio.to_thread(envoy_policy.load),
            )
            self._report.part("policy", "hello", f"web may GET {policies.ALLOWED_PATH} of api (revision {revision})")
            await self._register()
            await self._start_demo(self.demo)
        self._write_status()

    async def _start_server(self, port: int) -> None:
        metrics_port = free_port()
        config = server_config(self.options, self.layout, port=port, metrics_port=metrics_port)
        child = await self._python("server", "ca.serve", config)
        socket = self.layout.server_admin_socket
        await child.until("it was not ready", lambda: admin.server_status(socket), seconds=SERVER_SECONDS)
        await child.until("it wrote no trust bundle", self._bundle_written, seconds=SERVER_SECONDS)
        self.status.server = ServerStatus(
            pid=child.pid,
            address=f"{LOOPBACK}:{port}",
            admin_socket=str(socket),
            metrics_address=f"{LOOPBACK}:{metrics_port}",
            bundle_file=str(self.layout.bundle_file),
        )
        self._report.part("server", "up", f"{LOOPBACK}:{port}, trust domain {self.options.trust_domain}")
        self._write_status()

    async def _start_agent(self, known: set[str]) -> None:
        assert self.status.server is not None
        token = await admin.create_token(self.layout.server_admin_socket)
        atomic_write(self.layout.join_token, token.encode(), 0o600)
        metrics_port = free_port()
        server = self.status.server.address
        config = agent_config(self.options, self.layout, server=server, metrics_port=metrics_port)
        child = await self._python("agent", "sds.agent", config)
        socket = self.layout.agent_admin_socket
        status = await child.until("it was not attested", lambda: admin.agent_status(socket), seconds=AGENT_SECONDS)
        self.status.agent = AgentStatus(
            pid=child.pid,
            spiffe_id=status.spiffe_id,
            workload_socket=str(self.layout.workload_socket),
            admin_socket=str(socket),
            metrics_address=f"{LOOPBACK}:{metrics_port}",
        )
        self._report.part("agent", "kept" if status.spiffe_id in known else "attested", status.spiffe_id)
        self._write_status()

    async def _register(self) -> None:
        assert self.status.agent is not None
        parent = type(self.options.service_id("web")).parse(self.status.agent.spiffe_id)
        wanted = [
            admin.Wanted(
                spiffe_id=self.options.service_id(place.name),
                parent_id=parent,
                selectors=place.selectors,
                ttl_seconds=DEMO_SVID_SECONDS,
            )
            for place in self._places
        ]
        await admin.ensure_entries(self.layout.server_admin_socket, wanted)
        words = (f"{place.name} = {' + '.join(place.selectors)}" for place in self._places)
        self._report.part("entries", str(len(wanted)), ", ".join(words))

    async def _start_demo(self, demo: Demo) -> None:
        for start in (demo.start_api, demo.start_gateway, demo.start_web):
            service = await start()
            detail = f"Envoy (pid {service.envoy.child.pid}) at {service.url} is {service.spiffe_id}"
            self._report.part(service.name, "up", detail)
            self.status.demo = [each.status() for each in demo.services.values()]
            self._write_status()

    async def stop(self) -> None:
        """End every child, those started last first, and remove what only a running stack has."""
        server_and_agent = {"server", "agent"}
        await asyncio.gather(*(child.stop() for child in self._children if child.name not in server_and_agent))
        for child in reversed(self._children):
            await child.stop()
        self.layout.status.unlink(missing_ok=True)
        self.layout.join_token.unlink(missing_ok=True)
        shutil.rmtree(self.layout.run, ignore_errors=True)

    def ensure_running(self) -> None:
        """Raises PartFailed when a part has gone."""
        for child in self._children:
            child.ensure_running()

    def finish(self) -> None:
        """All parts are up: say so in status.json."""
        self.status.ready = True
        self._write_status()

    def _children_add(self, child: Child) -> None:
        self._children.append(child)

    async def _python(self, name: str, module: str, config: dict[str, Any]) -> Child:
        file = self.layout.home / f"{name}.yaml"
        atomic_write(file, as_yaml(config).encode(), 0o600)
        # -P: the current directory must not be able to replace our modules.
        arguments = [sys.executable, "-P", "-m", module, "--config", str(file)]
        child = await Child.start(name, arguments, log=self.layout.log(name))
        self._children_add(child)
        return child

    async def _bundle_written(self) -> bool:
        return self.layout.bundle_file.exists() and self.layout.bundle_file.stat().st_size > 0

    def _write_status(self) -> None:
        self.status.write(self.layout.status)


def refuse_other_data(layout: Layout, options: Options) -> None:
    """Raises FailedPrecondition when the directory belongs to another trust domain."""
    if not layout.server_config.exists():
        return
    import yaml

    written = yaml.safe_load(layout.server_config.read_text()) or {}
    if (name := written.get("trust_domain")) != options.trust_domain.name:
        raise FailedPrecondition(
            f"`{layout.home}` holds the trust domain `{name}`, not `{options.trust_domain}`",
            reason="OTHER_TRUST_DOMAIN",
            hint=f"choose another directory with --dir, or go on with --trust-domain {name}",
        )
