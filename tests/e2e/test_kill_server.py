"""The server is killed at every step of an attestation, an issuance and a rotation; then it is started again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509

from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.identity.svid import verify_x509_svid
from ca.proto.burgee import admin_pb2, admin_pb2_grpc
from ca.proto.spire import server_bundle_pb2, server_bundle_pb2_grpc, server_svid_pb2, server_svid_pb2_grpc
from tests.support.pair import TRUST_DOMAIN, Pair, until
from tests.support.server import make_csr

ATTESTATION = (
    "after ca.store.tokens:Tokens.consume",
    "before ca.store.agents:Agents.upsert",
    "after ca.service.attestation:NodeAttestation.attest",
)
ISSUANCE = (
    "before ca.service.issuance:Issuer.for_workloads",
    "before 2 ca.store.issuance:IssuanceLog.append",  # the first is that of the server's own SVID
    "after 2 ca.store.issuance:IssuanceLog.append",
    "after ca.service.issuance:Issuer.for_workloads",
)
NEXT_AUTHORITIES = (
    "after ca.keys.disk:DiskKeyManager.generate",
    "after ca.service.rotation_keys:AuthorityKeys.note",
    "before ca.service.rotation_steps:Steps._published",
    "after ca.service.rotation_steps:Steps.prepare",
    "after ca.service.rotation_steps:Steps.carry_out",
    "after ca.store.authorities:Authorities.alter",
)
FIRST_AUTHORITIES = (
    "after ca.keys.disk:DiskKeyManager.generate",
    "after ca.store.issuance:IssuanceLog.append",
    "after ca.service.rotation_keys:AuthorityKeys.note",
    "before ca.service.rotation_steps:Steps._published",
    "after ca.service.rotation_steps:Steps.prepare",
    "after ca.service.rotation_steps:Steps.carry_out",
)


class Doomed(Pair):
    """A pair whose server dies at `step`, once."""

    step = ""

    def _start(self, name: str, module: str, config: dict[str, Any]) -> None:
        if name != "server" or not self.step:
            super()._start(name, module, config)
            return
        path = self.home / "server.yaml"
        path.write_text(yaml.safe_dump(config))
        with (self.home / "server.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.support.dying", name, self.step, "--config", str(path)]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def has_died(self) -> None:
        assert self.processes.pop("server").wait(20) == -signal.SIGKILL

    def kill(self) -> None:
        process = self.processes.pop("server")
        process.kill()
        process.wait()

    # What the server says

    def mint(self, path: str) -> tuple[bytes, ...]:
        with self._channel(self.admin_socket) as channel:
            request = server_svid_pb2.MintX509SVIDRequest(csr=make_csr(uris=[f"spiffe://{TRUST_DOMAIN}{path}"]))
            return tuple(server_svid_pb2_grpc.SVIDStub(channel).MintX509SVID(request, timeout=5).svid.cert_chain)

    def bundle(self) -> TrustBundle:
        with self._channel(self.admin_socket) as channel:
            stub = server_bundle_pb2_grpc.BundleStub(channel)
            found = stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=5)
        authorities = tuple(X509Authority(certificate=a.asn1) for a in found.x509_authorities)
        return TrustBundle(trust_domain=TrustDomain(TRUST_DOMAIN), x509_authorities=authorities)

    def recorded(self, path: str = "") -> list[str]:
        """Serial numbers of X.509-SVIDs: all, or those with this ID."""
        request = admin_pb2.ListIssuedRequest(spiffe_id=f"spiffe://{TRUST_DOMAIN}{path}" if path else "")
        with self._channel(self.admin_socket) as channel:
            pages = admin_pb2_grpc.AdminStub(channel).ListIssued(request, timeout=10)
            return [record.serial_or_kid for page in pages for record in page.records if record.kind == "x509"]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        database = sqlite3.connect(self.home / "server" / "store.sqlite3")
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()

    def is_whole(self) -> None:
        """One active authority of each kind, each known one in the bundle once, and with a key."""
        known = self.rows("SELECT kind, status, authority_id, key_id FROM authorities")
        assert Counter(kind for kind, status, _, _ in known if status == "active") == {"x509": 1, "jwt": 1}
        ((told,),) = self.rows(f"SELECT authorities FROM bundles WHERE trust_domain = '{TRUST_DOMAIN}'")
        published = json.loads(told)
        assert sum(len(group) for group in published.values() if isinstance(group, list)) >= 2
        assert len(self.bundle().x509_authorities) == sum(kind == "x509" for kind, *_ in known)
        written = (path.stem for path in (self.home / "server" / "keys").glob("*.pem"))
        keys = {name for name in written if not name.startswith(".")}  # one that is being written belongs to nobody yet
        assert keys == {key_id for *_, key_id in known}, "a key without an authority, or the other way round"

    def trusts(self, chain: tuple[bytes, ...], *, now: datetime | None = None) -> None:
        verify_x509_svid(chain, {TrustDomain(TRUST_DOMAIN): self.bundle()}, now=now or datetime.now(UTC))


@contextmanager
def doomed(**server: Any) -> Iterator[Doomed]:
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    home.chmod(0o755)
    made = Doomed(home, server=server)
    try:
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("step", ATTESTATION)
def test_at_each_step_of_an_attestation(step: str) -> None:
    """The agent heals by itself, as the same node: its key is what the used token now belongs to."""
    with doomed() as pair:
        pair.start_server()
        token = pair.create_token()
        (pair.home / "token").write_text(token)
        pair.stop("server")
        pair.step = step
        pair.launch("server")
        pair.launch("agent")
        pair.has_died()
        pair.start_server()
        until("the agent is OK", lambda: pair.status().state == "OK")
        assert pair.agent_path() == f"/spire/agent/join_token/{token}"
        assert pair.count_agents() == 1
        pair.is_whole()


@pytest.mark.parametrize("step", FIRST_AUTHORITIES)
def test_at_each_step_of_making_authorities(step: str) -> None:
    """Whatever was stored is taken up; whatever was not is made anew."""
    with doomed() as pair:
        pair.step = step
        pair.launch("server")
        pair.has_died()
        pair.start_server()
        pair.trusts(pair.mint("/w"))
        pair.is_whole()
        before = pair.rows("SELECT authority_id FROM authorities ORDER BY 1")
        pair.kill()
        pair.start_server()
        assert pair.rows("SELECT authority_id FROM authorities ORDER BY 1") == before


@pytest.mark.parametrize("step", ISSUANCE)
def test_at_each_step_of_an_issuance(step: str) -> None:
    """The agent asks again and gets each SVID; what may have been signed is on record, whoever got it."""
    with doomed() as pair:
        pair.start_server()
        pair.start_agent()
        pair.create_entry("/w/1")
        until("it is there", lambda: pair.status().x509_svids == 1)
        agent = pair.agent_path()
        pair.agent_path = lambda: agent  # type: ignore[method-assign]  # it cannot be asked now
        os.kill(pair.pid("agent"), signal.SIGSTOP)
        pair.create_entry("/w/2")
        pair.stop("server")
        pair.step = step
        pair.launch("server")
        os.kill(pair.pid("agent"), signal.SIGCONT)
        pair.has_died()
        os.kill(pair.pid("agent"), signal.SIGSTOP)
        pair.start_server()
        lost = 1 if step.startswith("after") else 0
        assert len(pair.recorded("/w/2")) == lost, "a record is made before the signature"
        os.kill(pair.pid("agent"), signal.SIGCONT)
        until("both SVIDs are there", lambda: pair.status().x509_svids == 2)
        until("the agent is OK", lambda: pair.status().state == "OK")
        assert len(pair.recorded("/w/2")) == lost + 1
        assert len(pair.recorded("/w/1")) == 1, "what it held is not asked for again"
        assert set(Counter(pair.recorded()).values()) == {1}
        assert pair.count_agents() == 1
        pair.is_whole()


@pytest.mark.slow
@pytest.mark.parametrize("step", NEXT_AUTHORITIES)
def test_at_each_step_of_a_rotation(step: str) -> None:
    """Authorities live for 12 s: the next start finishes what was begun, and what was issued before stays trusted."""
    ttls = {"ca_ttl_seconds": 12, "x509_svid_ttl_seconds": 2, "jwt_svid_ttl_seconds": 2, "agent_ttl_seconds": 2}
    with doomed(**ttls, backdate_seconds=0) as pair:
        pair.start_server()
        first = set(pair.rows("SELECT authority_id FROM authorities"))
        before, then = pair.mint("/w"), datetime.now(UTC)
        pair.stop("server")
        pair.step = step
        pair.launch("server")
        pair.has_died()
        pair.start_server()
        pair.trusts(before, now=then)
        pair.trusts(pair.mint("/w"))
        pair.is_whole()
        until("the rotation comes to its end", lambda: _rotated(pair, first))
        pair.trusts(pair.mint("/w"))
        pair.is_whole()


def _rotated(pair: Doomed, first: set[tuple[str, ...]]) -> bool:
    """Both active authorities are others than the first."""
    active = set(pair.rows("SELECT authority_id FROM authorities WHERE status = 'active'"))
    return len(active) == 2 and not active & first


def test_at_any_moment_while_authorities_rotate_and_svids_are_issued() -> None:
    """Authorities live for 12 s. Every SVID that was given out is on record, once, and trusted."""
    ttls = {"ca_ttl_seconds": 12, "x509_svid_ttl_seconds": 2, "jwt_svid_ttl_seconds": 2, "agent_ttl_seconds": 2}
    choose = random.Random(7)
    with doomed(**ttls, backdate_seconds=0) as pair:
        pair.start_server()
        minted: list[tuple[bytes, ...]] = []
        end = time.monotonic() + 12
        while time.monotonic() < end:
            die_at = time.monotonic() + choose.uniform(0.1, 1.5)
            while time.monotonic() < die_at:
                try:
                    minted.append(pair.mint(f"/w/{len(minted)}"))
                except grpc.RpcError as error:
                    raise AssertionError(f"not issued while the server ran: {error}") from error
                pair.trusts(minted[-1])
            pair.kill()
            pair.start_server()
        pair.is_whole()
        assert len(pair.rows("SELECT * FROM authorities WHERE kind = 'x509'")) >= 2
        recorded = Counter(pair.recorded())
        assert set(recorded.values()) == {1}
        serials = [str(x509.load_der_x509_certificate(chain[0]).serial_number) for chain in minted]
        assert len(set(serials)) == len(serials) > 20
        assert set(serials) <= set(recorded)
