"""Burgee under Burgee, three levels: one root at the top, SVIDs of the lowest believed by OpenSSL and real Envoys."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ca.identity.bundle_pem import parse_certificates
from ca.identity.certificate import authority_id, load_certificate, split_certificates
from ca.proto.burgee import workload_pb2
from ca.up.envoy_config import OUTBOUND
from tests.ca.upstream.openssl import need_openssl, verify
from tests.support.envoys import Envoy
from tests.support.mesh import Load, Mesh
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until
from tests.support.workload_client import WorkloadClient

pytestmark = [
    pytest.mark.real("envoy"),
    pytest.mark.xdist_group("envoy"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

LEVELS = 3
ME = f"spiffe://{TRUST_DOMAIN}/me"
AUDIENCE = "spiffe://pair.test/api"
PUBLISHED_SECONDS = 60.0
"""What a new JWT authority may take to be known on all levels."""


def below(above: Pair, name: str) -> dict[str, Any]:
    """The configuration of a server whose identity comes from the agent of the level above."""
    above.create_entry(f"/{name}/server", downstream=True)
    config = {"servers": [f"127.0.0.1:{above.port}"], "workload_socket": str(above.workload_socket)}
    return {"upstream": {"plugin": "spire", "config": config}}


@pytest.fixture(scope="module")
def levels() -> Iterator[list[Pair]]:
    """From the top down."""
    with ExitStack() as stack:
        made = [stack.enter_context(pair())]
        for number in range(1, LEVELS):
            made.append(stack.enter_context(pair(server=below(made[-1], f"level-{number}"))))
        yield made


@pytest.fixture(scope="module")
def lowest(levels: list[Pair]) -> Pair:
    return levels[-1]


async def fetched(nodes: Pair) -> workload_pb2.X509SVID:
    async with WorkloadClient(str(nodes.workload_socket)) as client:
        async for answer in client.x509_svids():
            return next(svid for svid in answer.svids if svid.spiffe_id == ME)
    raise AssertionError("the stream ended")


@pytest.fixture(scope="module")
def svid(lowest: Pair) -> workload_pb2.X509SVID:
    """This test's own, of the lowest level."""
    lowest.create_entry("/me")
    until("the entry arrived", lambda: lowest.status().x509_svids >= 1)
    return asyncio.run(fetched(lowest))


def root_of(nodes: Pair) -> list[bytes]:
    return list(parse_certificates(nodes.bundle_file.read_bytes()))


def test_the_bundle_holds_the_root_alone_on_every_level(levels: list[Pair], svid: workload_pb2.X509SVID) -> None:
    (root,) = root_of(levels[0])
    assert [root_of(nodes) for nodes in levels] == [[root]] * LEVELS
    assert split_certificates(svid.bundle) == [root]


def test_openssl_verifies_an_svid_of_the_lowest_level_against_the_top_root(
    levels: list[Pair], svid: workload_pb2.X509SVID, tmp_path: Path
) -> None:
    need_openssl()
    leaf, *chain = split_certificates(svid.x509_svid)
    assert len(chain) == LEVELS - 1
    roots = root_of(levels[0])
    assert verify(tmp_path, leaf, chain, roots, at=datetime.now(UTC), strict=True) == ""
    assert verify(tmp_path, leaf, chain[:1], roots, at=datetime.now(UTC)) != ""
    ends = [load_certificate(der).not_valid_after_utc for der in (leaf, *chain, *roots)]
    assert ends == sorted(ends)


@pytest.fixture(scope="module")
def low_mesh(lowest: Pair) -> Iterator[Mesh]:
    """Two Envoys of the lowest level."""
    made = Mesh(lowest)
    try:
        yield made
    finally:
        made.close()


def test_envoys_of_the_lowest_level_speak_mtls(low_mesh: Mesh) -> None:
    answer = low_mesh.get()
    assert answer.headers["x-demo-client"] == f"spiffe://{TRUST_DOMAIN}/web"
    assert answer.headers["x-demo-server"] == f"spiffe://{TRUST_DOMAIN}/api"


def test_an_envoy_of_the_lowest_level_calls_one_of_the_top(levels: list[Pair], lowest: Pair) -> None:
    """Each has its SVID from another server, and both the one root."""
    mesh = Mesh(levels[0])
    low = Envoy("low", lowest.home / "low")
    try:
        lowest.create_entry("/web", low.selector)
        peering = mesh.peering("web", "api", directory=low.directory)
        mesh.start_outer(low, replace(peering, workload_socket=lowest.workload_socket))
        answer = mesh.get(low.port(OUTBOUND))
        assert answer.status_code == 200
        assert answer.headers["x-demo-client"] == f"spiffe://{TRUST_DOMAIN}/web"
    finally:
        low.stop()
        mesh.close()


async def token_of(nodes: Pair) -> str:
    async with WorkloadClient(str(nodes.workload_socket)) as client:
        answer = await client.jwt_svids(AUDIENCE, spiffe_id=ME)
        return str(answer.svids[0].svid)


async def is_valid(nodes: Pair, token: str) -> bool:
    async with WorkloadClient(str(nodes.workload_socket)) as client:
        answer = await client.validate(AUDIENCE, token)
        return bool(answer.spiffe_id == ME)


def test_a_token_of_the_lowest_level_is_verified_on_every_other(
    levels: list[Pair], lowest: Pair, svid: workload_pb2.X509SVID
) -> None:
    """Its key went up level by level, and from the top to all agents."""
    token = asyncio.run(token_of(lowest))
    for nodes in levels:
        until("the token is valid", lambda nodes=nodes: asyncio.run(is_valid(nodes, token)), seconds=PUBLISHED_SECONDS)


def caadmin(nodes: Pair, *arguments: str) -> Any:
    """What the command prints as JSON."""
    command = [sys.executable, "-m", "ca.cli.caadmin", *arguments, "-o", "json", "--socket", str(nodes.admin_socket)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_taint_at_the_top_reaches_the_lowest_level_and_fails_no_request(
    levels: list[Pair], lowest: Pair, low_mesh: Mesh, svid: workload_pb2.X509SVID, tmp_path: Path
) -> None:
    """Every level asks the one above for an authority below the new root; the SVIDs follow, under load."""
    top, (old,) = levels[0], root_of(levels[0])
    load = Load(low_mesh)
    load.start()
    try:
        caadmin(top, "ca", "prepare", "x509")
        until("all levels know the new root", lambda: all(len(root_of(nodes)) == 2 for nodes in levels), seconds=60)
        (new,) = [root for root in root_of(top) if root != old]
        caadmin(top, "ca", "activate", "x509", authority_id(new), "--force", "--yes")
        caadmin(top, "ca", "taint", "x509", authority_id(old))

        def moved() -> bool:
            leaf, *chain = split_certificates(asyncio.run(fetched(lowest)).x509_svid)
            return verify(tmp_path, leaf, chain, [new], at=datetime.now(UTC)) == ""

        until("the lowest level's SVIDs lead to the new root", moved, seconds=60)
        before = low_mesh.web.serial()
        until("Envoy has another one", lambda: low_mesh.web.serial() != before, seconds=40)
        load.finish()
    finally:
        load.done.set()


def test_the_lowest_level_goes_on_while_those_above_are_away(levels: list[Pair], lowest: Pair) -> None:
    for nodes in levels[:-1]:
        nodes.stop("server")
    before = lowest.status().x509_svids
    lowest.create_entry("/later")
    until("a new SVID is issued", lambda: lowest.status().x509_svids > before)
    lowest.stop("server")
    lowest.start_server()
    lowest.create_entry("/later-still")
    until("another one, after a restart", lambda: lowest.status().x509_svids > before + 1)
    for nodes in levels[:-1]:
        nodes.start_server()
    until("the agents are OK again", lambda: all(nodes.status().state == "OK" for nodes in levels), seconds=60)
