"""A container that is relabelled gains and loses identities while its stream lives: nobody connects anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from attestor.workload.container import Container
from attestor.workload.docker import Config, DockerAttestor
from attestor.workload.run import attest_all
from ca.identity.selector import Selector
from ca.ports import Process
from ca.runtime.config import from_values
from tests.sds.lab import Lab, entry
from tests.support.engine import StandInEngine, docker_container

ID = "5e" * 32
SECONDS = 5.0
"""Within which it must be seen; the interval is a tenth of that."""


async def until(stream: Any, *paths: str) -> None:
    """Reads until the identities are these; fails when that takes too long."""
    async with asyncio.timeout(SECONDS):
        while [svid.spiffe_id.removeprefix("spiffe://example.org") for svid in (await stream.read()).svids] != [*paths]:
            pass


async def test_a_relabelled_container_loses_and_gains_identities_within_seconds(tmp_path: Path) -> None:
    engine = StandInEngine(tmp_path / "docker.sock")
    engine.runs(docker_container(ID, Labels={"app": "web"}))
    config = from_values({"docker_socket_path": str(engine.path), "cache_seconds": 0.1}, Config)
    container = Container(pod_uid=None, container_id=ID)
    attestor = DockerAttestor(config, find=lambda proc: container)

    async def attest(process: Process) -> frozenset[Selector]:
        return (await attest_all({"docker": attestor}, process)).selectors

    async with Lab(interval=SECONDS / 10) as lab:
        lab.workloads._attest = attest
        web, both, api = (
            entry("web", "/web", Selector("docker", "label:app:web")),
            entry("any", "/any", Selector("docker", "image_id:registry.example.org/web:1.4")),
            entry("api", "/api", Selector("docker", "label:app:api")),
        )
        await lab.issued(web, both, api)
        async with lab.client() as client:
            stream = client.x509_svids()
            await until(stream, "/any", "/web")
            engine.runs(docker_container(ID, Labels={"app": "api"}))
            await until(stream, "/any", "/api")
            engine.runs(docker_container(ID, Labels={}))
            await until(stream, "/any")
            stream.cancel()
    engine.close()
