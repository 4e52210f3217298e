"""Root rotations below OpenBao's PKI mount while two real Envoys, with SVIDs of 10 s, carry 200 requests a second:
not one request fails."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ca.identity.bundle import authority_id
from ca.identity.bundle_pem import parse_certificates
from ca.identity.certificate import is_issued_by, load_certificate, split_certificates
from ca.up.envoy_config import HTTP_OPTIONS, Peering, outbound
from tests.support.envoys import Envoy, speaking
from tests.support.mesh import SVID_SECONDS, Mesh
from tests.support.openbao import shared_openbao
from tests.support.openbao_mounts import make_token
from tests.support.operators import Mount, Operator, when_allowed
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until
from tests.support.request_load import RequestLoad
from tests.support.workload_client import WorkloadClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real("OpenBao"),
    pytest.mark.real("envoy"),
    pytest.mark.xdist_group("envoy"),
    pytest.mark.timeout(300),
]

REQUIRED_PER_SECOND = 200
ASKED_PER_SECOND = 250
REQUESTS_PER_CONNECTION = 5
"""Of Envoy to Envoy: handshakes go on all the time."""
CA_SECONDS = 600
AGENT_SECONDS = 20
SHORT_ROOT = timedelta(seconds=60)
"""Its authorities have to last for the longest SVID, and for the margin that is kept of `CA_SECONDS`."""
LASTING = timedelta(days=1)
REPLACED_SECONDS = 10.0
"""What a taint may take to reach every workload."""
IDLE_SECONDS = 100
"""So long lives the SVID that only a taint replaces while the test looks."""


class BusyMesh(Mesh):
    """A mesh whose Envoys make a new connection, with a full handshake, for every few requests."""

    def start_outer(self, envoy: Envoy, peering: Peering) -> None:
        config = outbound(peering, self.inner)
        cluster = next(one for one in config["static_resources"]["clusters"] if one["name"] == "peer")
        options = cluster["typed_extension_protocol_options"][HTTP_OPTIONS]["common_http_protocol_options"]
        options["max_requests_per_connection"] = REQUESTS_PER_CONNECTION
        cluster["transport_socket"]["typed_config"]["max_session_keys"] = 0
        envoy.start(speaking(self.api_type, config))

    def handshakes(self) -> dict[str, int]:
        """How many there were, and what went wrong with any."""
        found = self.web.stats(
            "cluster.peer.(ssl.(handshake|connection_error|session_reused|fail_.*)|upstream_cx_connect_fail)$"
        )
        found |= self.api.stats("ssl.fail_.*")
        return {name.removeprefix("cluster.peer."): value for name, value in found.items() if value}


@dataclass(frozen=True, kw_only=True)
class Site:
    """Everything that runs, and who turns what."""

    mount: Mount
    nodes: Pair
    mesh: BusyMesh
    operator: Operator

    def roots(self) -> list[str]:
        """What agents are told to trust."""
        return [authority_id(der) for der in parse_certificates(self.nodes.bundle_file.read_bytes())]

    def root_in_use(self) -> str:
        return self.operator.state().active.upstream_authority_subject_key_id

    def succeed(self) -> tuple[str, str]:
        """A new authority below the mount's new root signs, as soon as it may. (The old one, its root.)"""
        before = self.operator.state().active
        new = self.operator.prepare()
        waited = when_allowed(lambda: self.operator.activate(new.authority_id))
        print(f"activation was refused for {waited:.1f} s while somebody was behind")
        return before.authority_id, before.upstream_authority_subject_key_id


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        bao = shared_openbao()
        mount = Mount(bao, life=LASTING)
        secret = Path(tempfile.mkdtemp(prefix="bg-")) / "token"
        stack.callback(shutil.rmtree, secret.parent, ignore_errors=True)
        secret.write_text(make_token(bao, mount.name, "default", ttl="1h"))
        options: dict[str, Any] = {
            "upstream": mount.upstream({"token_file": str(secret)}),
            "ca_ttl_seconds": CA_SECONDS,
            "x509_svid_ttl_seconds": SVID_SECONDS,
            "jwt_svid_ttl_seconds": SVID_SECONDS,
            "agent_ttl_seconds": AGENT_SECONDS,
            "consumer_waits": {"files_seconds": 0},
        }
        nodes = stack.enter_context(pair(server=options))
        mesh = BusyMesh(nodes)
        stack.callback(mesh.close)
        yield Site(mount=mount, nodes=nodes, mesh=mesh, operator=Operator(nodes.admin_socket))


@pytest.fixture
def load(site: Site) -> Iterator[RequestLoad]:
    with RequestLoad(site.mesh.outer, per_second=ASKED_PER_SECOND) as running:
        yield running


def assert_nobody_noticed(site: Site, load: RequestLoad, what: str) -> None:
    outcome, handshakes = load.finish(), site.mesh.handshakes()
    print(f"{what}: {outcome}; handshakes since the start {handshakes}")
    assert outcome.words == []
    assert outcome.failed == 0
    assert outcome.per_second >= REQUIRED_PER_SECOND
    assert handshakes.pop("ssl.handshake", 0) > outcome.answered / REQUESTS_PER_CONNECTION / 2
    assert handshakes == {}


def both_renewed(site: Site) -> None:
    """Each Envoy presents another certificate than now."""
    web, api = site.mesh.web.serial(), site.mesh.api.serial()
    until("both renew", lambda: site.mesh.web.serial() != web and site.mesh.api.serial() != api, seconds=40)


def test_from_one_root_to_the_next(site: Site, load: RequestLoad) -> None:
    """Prepare, activate, prune; and the old root leaves the bundle a minute after the mount named it last."""
    new_root = site.mount.new_root(life=LASTING)
    old, old_root = site.succeed()
    assert site.root_in_use() == new_root != old_root
    assert set(site.roots()) == {old_root, new_root}
    both_renewed(site)
    waited = when_allowed(lambda: site.operator.prune(old))
    print(f"pruning was refused for {waited:.1f} s while SVIDs hung on it")
    until("the old root leaves", lambda: site.roots() == [new_root], seconds=150)
    both_renewed(site)
    assert_nobody_noticed(site, load, "root rotation")


def test_a_root_that_expires_on_the_way(site: Site, load: RequestLoad) -> None:
    """Nobody turns anything: the schedule leaves the root that ends for the one that the mount has by then."""
    short_root = site.mount.new_root(life=SHORT_ROOT)
    ends = time.monotonic() + SHORT_ROOT.total_seconds()
    site.succeed()
    assert site.root_in_use() == short_root
    next_root = site.mount.new_root(life=LASTING)
    left = ends - time.monotonic()
    until("the next root is in use", lambda: site.root_in_use() == next_root, seconds=left)
    print(f"the schedule changed roots {ends - time.monotonic():.1f} s before the old one's end")
    assert short_root in site.roots()
    time.sleep(max(0.0, ends - time.monotonic()))
    until("the ended root leaves", lambda: short_root not in site.roots(), seconds=60)
    both_renewed(site)
    assert_nobody_noticed(site, load, "root expired on the way")


def test_a_tainted_root_and_everything_issued_anew(site: Site, load: RequestLoad) -> None:
    """A workload whose SVID had a minute and a half to go has another one within seconds."""
    idle = site.nodes.create_entry("/idle", x509_svid_ttl=IDLE_SECONDS)
    try:
        until("the idle workload has its SVID", lambda: bool(_idle_chain(site)), seconds=40)
        before = _idle_chain(site)
        new_root = site.mount.new_root(life=LASTING)
        _, old_root = site.succeed()
        assert _idle_chain(site) == before
        began = time.monotonic()
        site.operator.taint_root(old_root)
        until("the idle workload's is replaced", lambda: _idle_chain(site) != before, seconds=REPLACED_SECONDS * 3)
        replaced = time.monotonic() - began
        waited = when_allowed(lambda: site.operator.revoke_root(old_root))
        print(f"taint: long SVID replaced after {replaced:.1f} s, nothing hung on it {waited:.1f} s later")
        assert replaced + waited <= REPLACED_SECONDS
        until("the old root leaves", lambda: old_root not in site.roots())
        assert site.root_in_use() == new_root
        assert is_issued_by(_idle_chain(site)[-1], _root(site, new_root))
        both_renewed(site)
        assert_nobody_noticed(site, load, "taint and forced re-issue")
    finally:
        site.nodes.delete_entry(idle)


def _idle_chain(site: Site) -> list[bytes]:
    """DER, leaf first; empty while there is none."""
    return asyncio.run(_fetched(site))


async def _fetched(site: Site) -> list[bytes]:
    async with asyncio.timeout(20), WorkloadClient(str(site.nodes.workload_socket)) as client:
        async for answer in client.x509_svids():
            found = [one for one in answer.svids if one.spiffe_id == f"spiffe://{TRUST_DOMAIN}/idle"]
            chain = list(split_certificates(found[0].x509_svid)) if found else []
            assert all(load_certificate(der) for der in chain)
            return chain
    return []


def _root(site: Site, name: str) -> bytes:
    known = parse_certificates(site.nodes.bundle_file.read_bytes())
    return next(der for der in known if authority_id(der) == name)
