"""Each prerequisite of an agent is well, warned of or failed, with its fix; a plugin's own fault is a finding too."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from ca.errors import Denied, Unavailable
from ca.identity.bundle import TrustBundle
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Finding, FindingLevel
from sds import doctor
from sds import doctor_checks as checks
from sds.cache import Cache
from sds.condition import Condition
from sds.doctor import Doctor
from sds.feed import ResumeToken, Snapshot
from sds.state import AgentSvid
from sds.views import WorkloadSvid
from tests.sds.fake_server import FakeServer
from tests.sds.lab import TD, Authority, entry
from tests.sds.node_lab import Node, Proof, config_for, running, serving, until, write_bundle
from tests.support.clock import FakeClock

OK, WARNING, FAILED = FindingLevel.OK, FindingLevel.WARNING, FindingLevel.FAILED
NOW = FakeClock().now()
HOUR = timedelta(hours=1)


def svid(*, life: timedelta = HOUR, age: timedelta = timedelta(0)) -> AgentSvid:
    agent, issued = SpiffeId(TD, "/spire/agent/x/y"), NOW - age
    return AgentSvid(id=agent, chain=(), key_der=b"", issued_at=issued, not_after=issued + life)


class TestIdentity:
    def levels(self, held: AgentSvid | None, *problems: tuple[str, str]) -> list[tuple[str, FindingLevel]]:
        condition = Condition(FakeClock())
        for part, reason in problems:
            condition.report(part, Unavailable("no", reason=reason, hint="do this"))
        return [(one.what, one.level) for one in checks.identity(held, condition, NOW)]

    def test_well(self) -> None:
        assert self.levels(svid()) == [("identity", OK)]

    def test_none_expired_or_short(self) -> None:
        assert self.levels(None) == [("identity", FAILED)]
        assert self.levels(svid(age=2 * HOUR)) == [("identity", FAILED)]
        assert self.levels(svid(life=timedelta(minutes=5))) == [("identity", WARNING)]

    def test_whatever_the_agent_says_is_wrong(self) -> None:
        found = self.levels(svid(), ("sync", "SERVER_UNREACHABLE"), ("state", "STATE_NOT_WRITABLE"))
        assert found == [("state on disk", FAILED), ("server", FAILED), ("identity", OK)]
        assert self.levels(None, ("identity", "ATTESTATION_REFUSED")) == [("identity", FAILED)]

    def test_a_ban_is_all_that_matters(self) -> None:
        condition = Condition(FakeClock())
        condition.banned(Denied("banned", reason="AGENT_BANNED", hint="evict it"))
        (finding,) = checks.identity(None, condition, NOW)
        assert (finding.level, finding.hint) == (FAILED, "evict it")


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, OK), (4, OK), (-4, OK), (6, WARNING), (-29, WARNING), (31, FAILED), (-3600, FAILED)]
)
def test_the_clock(seconds: int, level: FindingLevel) -> None:
    finding = checks.clock(timedelta(seconds=seconds))
    assert finding.level is level
    assert ("ahead of" in finding.detail) == (seconds <= 0)
    assert bool(finding.hint) == (level is not OK)


def test_the_bundle_here_against_the_servers() -> None:
    one, other = Authority(), Authority()
    both = one.bundle(other)
    assert checks.bundle(both, both).level is OK
    assert checks.bundle(one.bundle(), both).level is FAILED
    assert checks.bundle(both, one.bundle()).level is WARNING


class TestSockets:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        for parent in (tmp_path, *tmp_path.parents):
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o001)
        (tmp_path / "w").mkdir(mode=0o755)
        return tmp_path / "w" / "s"

    def bind(self, path: Path, mode: int) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
        path.chmod(mode)

    def test_the_workloads_socket(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(path.parent)
        assert checks.workload_socket(path).level is FAILED
        self.bind(Path("s"), 0o777)
        assert checks.workload_socket(path).level is OK
        path.chmod(0o770)
        assert "chmod 0777" in checks.workload_socket(path).hint
        path.chmod(0o777)
        path.parent.chmod(0o700)
        closed = checks.workload_socket(path)
        assert (closed.level, closed.hint) == (FAILED, f"chmod o+x {path.parent}, or move the socket")
        path.parent.chmod(0o755)
        path.unlink()
        path.write_text("")
        assert checks.workload_socket(path).level is FAILED

    def test_what_is_private(self, tmp_path: Path) -> None:
        place = tmp_path / "p"
        assert checks.private("p", place).level is FAILED
        place.mkdir(mode=0o700)
        assert checks.private("p", place).level is OK
        place.chmod(0o750)
        assert checks.private("p", place).hint == f"chmod 0700 {place}"
        assert checks.private("p", place, group=True).level is OK
        place.chmod(0o751)
        assert checks.private("p", place, group=True).hint == f"chmod 0750 {place}"

    def test_whether_processes_can_be_seen(self, tmp_path: Path) -> None:
        assert checks.processes(tmp_path).level is FAILED
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "status").write_text("")
        assert checks.processes(tmp_path).level is WARNING
        (tmp_path / "1" / "exe").symlink_to("/bin/init")
        assert checks.processes(tmp_path).level is OK


def test_entries_that_no_attestor_here_can_match() -> None:
    fine, odd = entry("a"), entry("b", "", Selector("unix", "uid:1"), Selector("k8s", "ns:x"))
    stored = entry("c", "", Selector("vault", "x:y"), store_svid=True)
    assert checks.entries([fine, stored], {"unix"}).level is OK
    finding = checks.entries([fine, odd], {"unix"})
    assert finding.level is WARNING
    assert "`k8s`" in finding.detail
    assert "`b`" in finding.detail


def test_svids_that_live_too_short_for_an_outage() -> None:
    def issued(name: str, life: timedelta) -> WorkloadSvid:
        return WorkloadSvid(
            entry_id=name,
            spiffe_id=SpiffeId(TD, f"/{name}"),
            chain=(),
            key=b"",
            issued_at=NOW,
            not_after=NOW + life,
            rotate_at=NOW,
            issuer_ids=(),
            asked=(),
        )

    assert checks.lives([issued("a", HOUR)]).level is OK
    finding = checks.lives([issued("a", HOUR), issued("b", timedelta(minutes=1)), issued("c", timedelta(minutes=2))])
    assert finding.level is WARNING
    assert "`spiffe://example.org/b` 60 s" in finding.detail


class Own:
    """An attestor that can look at what it needs."""

    def __init__(self, *findings: Finding, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.findings = findings
        self.error = error
        self.seconds = seconds

    async def check(self) -> Sequence[Finding]:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.findings


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer()) as started:
        yield started


def doctor_of(node: Node, **plugins: object) -> Doctor:
    cache = Cache(TD, clock=node.clock)
    cache.apply(Snapshot(token=ResumeToken("e", 1), entries=(entry("a"),), bundles=(Authority().bundle(),)))
    return Doctor(
        config=node.config,
        clock=node.clock,
        cache=cache,
        condition=node.condition,
        trust=node.trust,
        store=node.store,
        svid=lambda: node.identity.svid,
        plugins=plugins,
        attestors={"unix"},
    )


def by_name(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


class TestWhole:
    async def test_an_agent_that_is_well(self, tmp_path: Path, server: FakeServer) -> None:
        async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as node:
            await until(lambda: node.identity.svid is not None)
            (tmp_path / "agent").chmod(0o700)
            found = by_name(await doctor_of(node).findings())
        well = ("reachability", "server", "clock", "bundle", "first trust", "identity", "data directory", "entries")
        for what in well:
            assert found[what].level is OK, found[what]
        assert found["workload socket"].level is FAILED, "this test has none"

    async def test_clocks_that_differ(self, tmp_path: Path, server: FakeServer) -> None:
        server.ahead_seconds = 3600.0
        async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as node:
            await until(lambda: node.identity.svid is not None)
            found = by_name(await doctor_of(node).findings())
        assert found["clock"].level is FAILED
        assert "s behind the server's" in found["clock"].detail

    async def test_a_server_that_does_not_tell_its_time_as_spires_does_not(self, tmp_path: Path) -> None:
        polled = FakeServer(pushes=False)
        async with serving(polled), running(Node(config_for(tmp_path, polled), Proof(b"t1"))) as node:
            await until(lambda: node.identity.svid is not None)
            found = by_name(await doctor_of(node).findings())
        assert found["clock"].level is WARNING
        assert found["bundle"].level is OK

    async def test_a_server_that_is_away(self, tmp_path: Path, server: FakeServer) -> None:
        config = config_for(tmp_path, server)
        async with running(Node(config, Proof(b"t1"))) as node:
            await until(lambda: node.identity.svid is not None)
            await server.close()
            found = by_name(await doctor_of(node).findings())
        assert found["reachability"].level is FAILED
        assert found["reachability"].hint
        assert any(one.level is FAILED and "server" in one.what for one in found.values())
        assert "bundle" not in found, "nothing to compare with"

    async def test_one_of_several_servers_that_is_away_is_a_warning(self, tmp_path: Path, server: FakeServer) -> None:
        config = config_for(tmp_path, server, servers=[server.address, "127.0.0.1:1"])
        async with running(Node(config, Proof(b"t1"))) as node:
            await until(lambda: node.identity.svid is not None)
            found = await doctor_of(node).findings()
        assert [one.level for one in found if one.what == "reachability"] == [OK, WARNING]

    async def test_a_first_trust_that_is_out_of_date(self, tmp_path: Path, server: FakeServer) -> None:
        async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as node:
            await until(lambda: node.identity.svid is not None)
            stale: TrustBundle = Authority().bundle()
            write_bundle(tmp_path / "bundle.pem", stale)
            found = by_name(await doctor_of(node).findings())
            (tmp_path / "bundle.pem").unlink()
            gone = by_name(await doctor_of(node).findings())
        assert found["first trust"].level is WARNING
        assert "BUNDLE_SOURCE" in gone["first trust"].detail

    async def test_attestors_look_at_what_they_need_themselves(
        self, tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "CHECK_SECONDS", 0.2)
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        found = by_name(
            await doctor_of(
                node,
                k8s=Own(Finding(what="kubelet permission", level=OK, detail="granted")),
                refused=Own(error=Unavailable("no kubelet", reason="KUBELET_UNREACHABLE", hint="start it")),
                crashes=Own(error=RuntimeError("secret")),
                hangs=Own(seconds=60),
                silent=object(),
            ).findings()
        )
        assert found["k8s: kubelet permission"].level is OK
        assert (found["refused"].level, found["refused"].hint) == (FAILED, "start it")
        assert found["crashes"].detail == "its check crashed: RuntimeError"
        assert found["hangs"].detail == "its check was not over within 0.2 s"
        assert "silent" not in found
