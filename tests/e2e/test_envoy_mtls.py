"""Two real Envoys in mTLS through our SDS, state of the world and delta: rotation under load, restarts, strangers."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ca.proto.burgee import agent_pb2
from ca.up.envoy_config import INBOUND, OUTBOUND
from tests.support.envoys import Envoy
from tests.support.mesh import Load, Mesh
from tests.support.pair import TRUST_DOMAIN, pair, until

pytestmark = [pytest.mark.real("envoy"), pytest.mark.xdist_group("envoy")]


@pytest.fixture(scope="module", params=["GRPC", "DELTA_GRPC"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    with pair() as nodes:
        made = Mesh(nodes, request.param)
        try:
            yield made
        finally:
            made.close()


def resources(mesh: Mesh, node: str) -> dict[str, agent_pb2.SdsResource]:
    """What the operator is shown of an Envoy: each of its secrets by name."""
    return {r.name: r for client in mesh.pair.sds_clients() if client.node_id == node for r in client.resources}


def test_both_envoys_see_the_others_identity(mesh: Mesh) -> None:
    """The proof is each Envoy's own word, in the headers it adds."""
    answer = mesh.get()
    assert answer.status_code == 200
    assert answer.headers["x-demo-client"] == f"spiffe://{TRUST_DOMAIN}/web"
    assert answer.headers["x-demo-server"] == f"spiffe://{TRUST_DOMAIN}/api"


def test_rotation_under_load_fails_no_request(mesh: Mesh) -> None:
    """10 s SVIDs, requests all the time: several rotations on both sides and not one failed request."""
    load = Load(mesh)
    load.start()
    for _ in range(2):
        web, api = mesh.web.serial(), mesh.api.serial()
        until("both rotate", lambda web=web, api=api: mesh.web.serial() != web and mesh.api.serial() != api, seconds=40)
    load.finish()


def test_agent_restart_under_load_fails_no_request(mesh: Mesh) -> None:
    """The agent is killed and started again; the Envoys reconnect and go on rotating."""
    load = Load(mesh)
    load.start()
    mesh.pair.stop("agent")
    mesh.pair.start_agent()
    web, api = mesh.web.serial(), mesh.api.serial()
    until("both rotate again", lambda: mesh.web.serial() != web and mesh.api.serial() != api, seconds=60)
    load.finish()


def test_agent_restarted_without_a_server_serves_from_its_sealed_cache(mesh: Mesh) -> None:
    """Server gone, agent restarted: a new Envoy connection still gets what is valid."""
    entry = mesh.pair.create_entry("/lasting", mesh.web.selector, x509_svid_ttl=600)
    until("the entry arrived", lambda: mesh.pair.status().x509_svids >= 3)
    mesh.pair.stop("server")
    try:
        mesh.pair.stop("agent")
        mesh.pair.launch("agent")
        until("the agent serves", lambda: mesh.pair.status().x509_svids >= 1)
        until("Envoy has it", lambda: len(mesh.pair.sds_clients()) >= 2, seconds=40)
    finally:
        mesh.pair.start_server()
    until("the agent heals", lambda: mesh.pair.status().state == "OK", seconds=60)
    mesh.pair.delete_entry(entry)


def test_a_restarted_envoy_gets_its_certificate_at_once(mesh: Mesh) -> None:
    """A new subscription is answered although no version changed."""
    mesh.web.stop()
    mesh.start_outer(mesh.web, mesh.peering("web", "api"))
    mesh.outer = mesh.web.port(OUTBOUND)
    until("requests pass", lambda: mesh.get().status_code == 200)
    assert mesh.web.stats("init_fetch_timeout") == dict.fromkeys(mesh.web.stats("init_fetch_timeout"), 0)


def test_an_envoy_with_another_identity_is_refused(mesh: Mesh) -> None:
    """A third service has a good SVID of the same trust domain, and api's Envoy does not let it in."""
    other = Envoy("other", mesh.pair.home / "other")
    mesh.pair.create_entry("/other", other.selector, x509_svid_ttl=60)
    try:
        mesh.start_outer(other, mesh.peering("other", "api"))
        port = other.port(OUTBOUND)
        time.sleep(0.1)
        assert mesh.get(port).status_code == 503
        assert mesh.get().status_code == 200
    finally:
        other.stop()


def test_an_envoy_without_an_entry_waits_and_gets_its_certificate_with_it(mesh: Mesh) -> None:
    """Its name is shown to the operator, nobody else's stream ends for it, and its entry opens its listener."""
    stranger, name = Envoy("stranger", mesh.pair.home / "stranger"), f"spiffe://{TRUST_DOMAIN}/stranger"
    try:
        mesh.start_inner(stranger, mesh.peering("stranger", "web"))
        until("the operator sees the unknown name", lambda: resources(mesh, "stranger")[name].state == "UNKNOWN")
        assert "no registration entry" in resources(mesh, "stranger")[name].detail
        assert mesh.get().status_code == 200
        entry = mesh.pair.create_entry("/stranger", stranger.selector, x509_svid_ttl=60)
        assert stranger.port(INBOUND)
        until("it is accepted", lambda: resources(mesh, "stranger")[name].state == "ACKED")
        mesh.pair.delete_entry(entry)
        until("it is shown as gone", lambda: "no longer given" in resources(mesh, "stranger")[name].detail)
        assert stranger.serial()
    finally:
        stranger.stop()


def test_a_nack_is_kept_in_envoys_own_words(mesh: Mesh) -> None:
    """An Envoy that takes a trust bundle for its certificate rejects it, and the operator reads why."""
    wrong, bundle = Envoy("wrong", mesh.pair.home / "wrong"), f"spiffe://{TRUST_DOMAIN}"
    peering = dataclasses.replace(mesh.peering("wrong", "web"), own_id=bundle)
    try:
        mesh.start_inner(wrong, peering)

        def rejected() -> list[agent_pb2.SdsResource]:
            listed = [client for client in mesh.pair.sds_clients() if client.node_id == "wrong"]
            return [r for client in listed for r in client.resources if r.state == "NACKED"]

        shown = until("Envoy rejects it", rejected)
        assert (shown[0].name, len(shown)) == (bundle, 1)
        assert "private key" in shown[0].detail  # Envoy's words
        assert shown[0].answered_at
        command = [sys.executable, "-m", "ca.cli.caadmin", "agent", "sds", "--agent-socket"]
        printed = subprocess.run([*command, mesh.pair.agent_admin_socket], capture_output=True, text=True, check=True)
        assert f"`{bundle}` NACKED: {shown[0].detail.strip()}" in " ".join(printed.stdout.split())
        assert mesh.get().status_code == 200
    finally:
        wrong.stop()


def test_the_envoys_of_the_mesh_accepted_everything(mesh: Mesh) -> None:
    """After all of the above: no secret that was sent stayed unaccepted, none timed out."""

    def states() -> set[str]:
        return {r.state for node in ("web", "api") for r in resources(mesh, node).values()}

    until("everything is acknowledged", lambda: states() == {"ACKED"})
    for envoy in (mesh.web, mesh.api):
        assert set(envoy.stats("sds.*(init_fetch_timeout|update_rejected)").values()) == {0}
