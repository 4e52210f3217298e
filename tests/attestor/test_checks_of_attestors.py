"""What each attestor finds for `caadmin doctor`: all well, and one thing that is not, with what mends it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from attestor.node.node_checks import validity
from ca.ports import Checked, Finding, FindingLevel
from tests.attestor.node import test_aws_iid as aws
from tests.attestor.node import test_azure_imds as azure
from tests.attestor.node import test_gcp_iit as gcp
from tests.attestor.node import test_sshpop as ssh
from tests.attestor.node import test_x509pop as x509pop
from tests.attestor.node import tpm_lab
from tests.attestor.workload import test_docker as docker
from tests.attestor.workload import test_systemd as systemd
from tests.support import cloud_services as cloud
from tests.support.clock import FakeClock
from tests.support.cloud_documents import REGION
from tests.support.engine import StandInEngine
from tests.support.node_host import FakeHost
from tests.support.openssl_ca import CA
from tests.support.swtpm import factory, usual_tpm
from tests.support.system_bus import StandInSystemd, SystemBus, Unit

LATER = datetime.now(UTC) + timedelta(days=40_000)


async def found(plugin: object) -> list[Finding]:
    assert isinstance(plugin, Checked), type(plugin)
    findings = list(await plugin.check())
    assert findings
    for finding in findings:
        assert finding.what
        assert finding.detail
        assert finding.hint or finding.level is FindingLevel.OK, f"nobody could mend this: {finding}"
    return findings


async def well(plugin: object) -> list[str]:
    findings = await found(plugin)
    assert {finding.level for finding in findings} == {FindingLevel.OK}, findings
    return [finding.detail for finding in findings]


async def trouble(plugin: object) -> Finding:
    """The first that is not well."""
    return next(finding for finding in await found(plugin) if finding.level is not FindingLevel.OK)


@contextmanager
def nobody() -> Iterator[str]:
    """An address on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class TestDocker:
    async def test_one_engine_is_enough(self, tmp_path: Path) -> None:
        engine = StandInEngine(tmp_path / "docker.sock")
        try:
            assert await well(docker.attestor(tmp_path)) == ["it answers"]
        finally:
            engine.close()

    async def test_without_any_it_is_said_where_they_were_looked_for(self, tmp_path: Path) -> None:
        none = await trouble(docker.attestor(tmp_path))
        assert (none.level, "ENGINE_MISSING" in none.detail) == (FindingLevel.FAILED, True)
        assert "workload_attestors.docker" in none.hint

    async def test_an_engine_that_may_not_be_asked_or_does_not_answer(self, tmp_path: Path) -> None:
        engine = StandInEngine(tmp_path / "docker.sock")
        engine.answer = lambda path: (500, b"")
        try:
            assert "status 500" in (await trouble(docker.attestor(tmp_path))).detail
        finally:
            engine.close()
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(tmp_path / "docker.sock"))  # and listens to nobody
        assert "may the agent's user open that socket" in (await trouble(docker.attestor(tmp_path))).hint
        stale.close()

    async def test_a_login_users_engine_is_a_warning(self, tmp_path: Path) -> None:
        engine = StandInEngine(tmp_path / "docker.sock")
        try:
            away = await trouble(docker.attestor(tmp_path, rootless_uids=[4242]))
            assert (away.level, "4242" in away.what) == (FindingLevel.WARNING, True)
        finally:
            engine.close()


class TestSystemd:
    async def test_it_says_which_unit_the_agent_is_in(self, tmp_path: Path) -> None:
        bus = SystemBus(tmp_path)
        bus.start()
        manager = StandInSystemd(bus, units={os.getpid(): Unit("burgee-agent.service", "/x")})
        manager.start()
        try:
            (detail,) = await well(systemd.attestor(bus))
            assert "id:burgee-agent.service" in detail
            manager.units.clear()
            assert "no unit" in (await well(systemd.attestor(bus)))[0]
        finally:
            manager.close()
            bus.close()

    async def test_without_a_bus(self, tmp_path: Path) -> None:
        away = await trouble(systemd.attestor(tmp_path / "nowhere"))
        assert "SYSTEMD_UNREACHABLE" in away.detail
        assert "bus_socket_path" in away.hint

    async def test_without_systemd_on_the_bus(self, tmp_path: Path) -> None:
        bus = SystemBus(tmp_path)
        bus.start()
        try:
            assert "SYSTEMD_ANSWER" in (await trouble(systemd.attestor(bus))).detail
        finally:
            bus.close()


class TestClouds:
    async def test_amazon(self) -> None:
        assert REGION in (await well(aws.verifier()))[0]
        assert await well(aws.prover(aws.metadata_endpoint())) == ["it gives the document and its signatures"]
        lacking = await trouble(aws.verifier(regions=[REGION, "eu-north-1"]))
        assert "eu-north-1" in lacking.detail
        with nobody() as endpoint:
            assert "HTTP_UNREACHABLE" in (await trouble(aws.prover(endpoint))).detail
        with cloud.service(lambda request: (404, b"")) as running:
            assert "switched on" in (await trouble(aws.prover(running.url))).hint

    async def test_google(self) -> None:
        assert str(gcp.keys_file()) in (await well(gcp.verifier()))[0]
        config = {"metadata_endpoint": gcp.metadata_endpoint()}
        (detail,) = await well(gcp.GcpIitProver(gcp.from_values(config, gcp.AgentConfig)))
        assert "node-1" in detail
        with nobody() as endpoint:
            url = endpoint.replace("http:", "https:") + "/certs"
            away = await trouble(gcp.verifier(keys_file=None, keys_url=url))
            assert (url in away.hint, "keys_file" in away.hint) == (True, True)
            config = {"metadata_endpoint": endpoint}
            none = await trouble(gcp.GcpIitProver(gcp.from_values(config, gcp.AgentConfig)))
            assert "HTTP_UNREACHABLE" in none.detail
        with cloud.service(lambda request: (200, b"no token")) as running:
            config = {"metadata_endpoint": running.url}
            assert await trouble(gcp.GcpIitProver(gcp.from_values(config, gcp.AgentConfig)))

    async def test_azure(self) -> None:
        assert await well(azure.verifier()) == ["1, all of them valid now"]
        assert await well(azure.prover(azure.metadata_endpoint())) == ["it gives the attested document"]
        late = FakeHost(clock=FakeClock(LATER))
        over = await trouble(azure.AzureImdsVerifier(azure.from_values(azure.server(), azure.ServerConfig), late))
        assert (over.level, "trust_bundle_path" in over.hint) == (FindingLevel.FAILED, True)
        with nobody() as endpoint:
            assert "HTTP_UNREACHABLE" in (await trouble(azure.prover(endpoint))).detail


class TestCertificates:
    async def test_x509pop(self, tmp_path: Path) -> None:
        assert await well(x509pop.verifier()) == ["1, all of them valid now"]
        assert len(await well(x509pop.prover(x509pop.pki().web))) == 2
        over = await trouble(x509pop.verifier(x509pop.at(LATER)))
        assert (over.level, "ca_bundle_path" in over.hint) == (FindingLevel.FAILED, True)
        authorities = tmp_path / "ca.pem"
        authorities.write_bytes(x509pop.pki().root.certificate.read_bytes())
        server = x509pop.verifier(ca_bundle_paths=[str(authorities)])
        authorities.unlink()
        assert "No such file" in (await trouble(server)).detail

    async def test_x509pop_of_a_node(self) -> None:
        pki = x509pop.pki()
        other = await trouble(x509pop.prover(pki.web, private_key_path=str(pki.rsa.key)))
        assert "not the key of the certificate" in other.detail
        authority = pki.ca.make("an authority", pki.issuing, extensions=CA)
        assert "NODE_CERTIFICATE_USAGE" in (await trouble(x509pop.prover(authority))).detail

    def test_a_certificate_is_to_be_renewed_before_it_ends(self) -> None:
        begins, ends = LATER, LATER + timedelta(days=100)
        for now, level in (
            (begins - timedelta(seconds=1), FindingLevel.FAILED),
            (begins, FindingLevel.OK),
            (ends - timedelta(days=11), FindingLevel.OK),
            (ends - timedelta(days=9), FindingLevel.WARNING),
            (ends + timedelta(seconds=1), FindingLevel.FAILED),
        ):
            finding = validity("certificate", begins, ends, now=now)
            assert (finding.level, "renew" in finding.hint) == (level, level is not FindingLevel.OK)

    async def test_sshpop(self, tmp_path: Path) -> None:
        assert await well(ssh.verifier()) == ["1"]
        assert len(await well(ssh.prover(ssh.host()))) == 2
        lines = tmp_path / "ca"
        lines.write_text(ssh.host_ca().line)
        server = ssh.verifier(cert_authorities_path=str(lines))
        lines.write_text("")
        assert "cert_authorities_path" in (await trouble(server)).hint
        over = await trouble(ssh.prover(ssh.host("of-yesterday", validity="-2d:-1d")))
        assert ("NODE_CERTIFICATE_EXPIRED" in over.detail, "ssh-keygen" in over.hint) == (True, True)
        user = await trouble(ssh.prover(ssh.host("of-a-user", user=True)))
        assert "NODE_CERTIFICATE_USAGE" in user.detail
        gone = await trouble(ssh.prover(ssh.host(), host_key_path=str(tmp_path / "none")))
        assert "NODE_CREDENTIAL" in gone.detail


@pytest.mark.real("swtpm")
@pytest.mark.xdist_group("swtpm")
class TestTpm:
    async def test_all_is_there(self) -> None:
        assert len(await well(tpm_lab.verifier())) == 2
        machine = usual_tpm()
        assert len(await well(tpm_lab.prover(machine))) == 3
        assert not machine.loaded(), "no key is made, and none is left"

    async def test_what_is_not(self, tmp_path: Path) -> None:
        machine = usual_tpm()
        away = await trouble(tpm_lab.prover(machine, tpm_device_path=str(tmp_path / "tpm")))
        assert ("TPM_MISSING" in away.detail, "group tss" in away.hint) == (True, True)
        half = await trouble(tpm_lab.prover(machine, devid_priv_path=str(tmp_path / "none")))
        assert (half.what, "NODE_CREDENTIAL" in half.detail) == ("DevID", True)
        bundle = tmp_path / "ca.pem"
        bundle.write_bytes(Path(factory().server["devid_ca_path"]).read_bytes())
        server: Any = tpm_lab.verifier({"devid_ca_path": str(bundle)})
        bundle.write_text("")
        assert (await trouble(server)).level is FindingLevel.FAILED
