"""Real Envoys in mTLS with 10 s SVIDs while their agent is killed again and again: not one request fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.test_bad_day_agent import attestations, kill, log_of, well
from tests.support.mesh import SVID_SECONDS, Load, Mesh
from tests.support.pair import pair, until

pytestmark = [pytest.mark.real("envoy"), pytest.mark.xdist_group("envoy")]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with pair() as nodes:
        made = Mesh(nodes)
        try:
            yield made
        finally:
            made.close()


def rotated(mesh: Mesh) -> None:
    web, api = mesh.web.serial(), mesh.api.serial()
    until("both rotate", lambda: mesh.web.serial() != web and mesh.api.serial() != api, seconds=3 * SVID_SECONDS)


@pytest.mark.slow
def test_kill_9_of_the_agent_all_through_its_start_and_its_rotations_fails_no_request(mesh: Mesh) -> None:
    """Killed a little later each time, from before it has read its files to after it has rotated, then at rotations."""
    load = Load(mesh)
    load.start()
    before = mesh.pair.status().spiffe_id
    rotated(mesh)  # else half of a life is left for six starts
    for step in range(5):
        kill(mesh.pair)
        mesh.pair.launch("agent")
        time.sleep(0.2 + 0.2 * step)
    well(mesh.pair)
    for _ in range(2):
        rotated(mesh)
        kill(mesh.pair)
        mesh.pair.launch("agent")
        well(mesh.pair)
    rotated(mesh)
    load.finish()
    print(f"{load.sent} requests, none failed")
    assert mesh.pair.status().spiffe_id == before
    assert attestations(mesh.pair) == 1
    assert "Traceback" not in log_of(mesh.pair, "agent")


@pytest.mark.slow
def test_kill_9_of_the_server_and_of_its_next_start_fails_no_request(mesh: Mesh) -> None:
    """Right after a rotation, and again a little later each time while it starts: renewed once it is back."""
    load = Load(mesh)
    load.start()
    before = mesh.pair.status().spiffe_id
    for step in range(4):
        rotated(mesh)
        began = time.monotonic()
        kill(mesh.pair, "server")
        mesh.pair.launch("server")
        time.sleep(0.2 + 0.3 * step)
        kill(mesh.pair, "server")
        mesh.pair.start_server()
        well(mesh.pair)
        print(f"away for {time.monotonic() - began:.1f} s of {SVID_SECONDS}")
    rotated(mesh)
    load.finish()
    print(f"{load.sent} requests, none failed")
    assert mesh.pair.status().spiffe_id == before
    assert (mesh.pair.count_agents(), attestations(mesh.pair)) == (1, 1)
    assert "Traceback" not in log_of(mesh.pair, "server")


@pytest.mark.slow
def test_server_or_agent_stopped_for_less_than_half_of_a_life_fails_no_request(mesh: Mesh) -> None:
    load = Load(mesh)
    load.start()
    for name in ("server", "agent"):
        os.kill(mesh.pair.pid(name), signal.SIGSTOP)
        time.sleep(0.3 * SVID_SECONDS)
        os.kill(mesh.pair.pid(name), signal.SIGCONT)
        rotated(mesh)
    load.finish()
    well(mesh.pair)
