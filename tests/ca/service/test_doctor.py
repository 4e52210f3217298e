"""What doctor says of a server that is not well: each thing has its level, and what mends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import Unavailable
from ca.identity.entry import RegistrationEntry
from ca.ports import Finding, FindingLevel
from ca.runtime.config import from_values
from ca.runtime.health import Health, Problem
from ca.runtime.server_config import ServerConfig
from ca.service import doctor as doctor_module
from ca.service.doctor import ServerDoctor
from ca.service.doctor_entries import agents, entries, lives
from ca.service.issuance import IssueSettings
from ca.store.values import AttestedAgent
from tests.support.clock import FakeClock
from tests.support.stores import HOUR, NOW, TD, agent, entry

OK, WARNING, FAILED = FindingLevel.OK, FindingLevel.WARNING, FindingLevel.FAILED
SETTINGS = IssueSettings(
    trust_domain=TD,
    server="a",
    x509_svid_ttl_seconds=3600,
    jwt_svid_ttl_seconds=300,
    agent_ttl_seconds=3600,
    backdate_seconds=10,
)


def authority(kind: AuthorityKind, begins: datetime) -> Authority:
    return Authority(
        kind=kind,
        authority_id="1",
        key_id="k",
        key_type="ec-p256",  # type: ignore[arg-type]
        status=AuthorityState.ACTIVE,
        not_before=begins,
        not_after=begins + timedelta(days=1),
        server="a",
    )


class Store:
    def __init__(self, *every: RegistrationEntry, error: Exception | None = None) -> None:
        self.entries = self
        self._every, self._error = every, error

    async def all(self) -> Sequence[RegistrationEntry]:
        if self._error is not None:
            raise self._error
        return self._every


class Plugin:
    """One that can be asked, and answers so."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def check(self) -> Sequence[Finding]:
        if isinstance(self._answer, BaseException):
            raise self._answer
        if self._answer is None:
            await asyncio.Event().wait()
        return [self._answer]


class Patient:
    """A server that is well, until a test changes something."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.directory = directory
        directory.chmod(0o700)
        (directory / "run").mkdir()
        self.socket = directory / "run" / "admin.sock"
        self.socket.touch(mode=0o600)
        self.health = Health()
        self.store: Store = Store()
        self.agents: list[AttestedAgent] = []
        self.heard = True
        self.authorities = [authority(kind, self.clock.now()) for kind in AuthorityKind]
        self.port = 8081
        self.verifiers: Mapping[str, object] = {}
        self.group: str | None = None

    def _config(self) -> ServerConfig:
        given = {"trust_domain": TD.name, "data_dir": str(self.directory)}
        return from_values(given | {"admin_socket": {"admin_group": self.group}}, ServerConfig)

    async def findings(self) -> dict[str, Finding]:
        doctor = ServerDoctor(
            config=self._config,
            trust_domain=TD,
            health=self.health,
            store=self.store,  # type: ignore[arg-type]
            agents=SimpleNamespace(agents={one.id: one for one in self.agents}),  # type: ignore[arg-type]
            heard=lambda _: self.heard,
            manager=SimpleNamespace(authorities=self.authorities),  # type: ignore[arg-type]
            settings=lambda: SETTINGS,
            upstream=None,
            verifiers=self.verifiers,
            istio=lambda: None,
            address=lambda: ("127.0.0.1", self.port),
            clock=self.clock,
        )
        return {finding.what: finding for finding in await doctor.findings()}


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


async def test_one_that_is_well(patient: Patient) -> None:
    found = await patient.findings()
    assert {one.level for one in found.values()} == {OK}
    assert {"health", "listener", "admin socket", "data directory", "x509 authority", "jwt authority"} <= set(found)


async def test_what_the_server_complains_of_is_told(patient: Patient) -> None:
    silent = Problem(reason="STORE_UNAVAILABLE", detail="the store does not answer", hint="start it")
    patient.health.add("store", lambda: silent)
    patient.health.warn("disk", lambda: Problem(reason="DISK_FULL_SOON", detail="little room is left"))
    found = await patient.findings()
    assert (found["store"].level, found["store"].hint) == (FAILED, "start it")
    assert "STORE_UNAVAILABLE" in found["store"].detail
    assert (found["disk"].level, found["disk"].detail) == (WARNING, "little room is left (DISK_FULL_SOON)")
    assert "health" not in found


async def test_one_that_does_not_listen_yet(patient: Patient) -> None:
    patient.port = 0
    found = (await patient.findings())["listener"]
    assert (found.level, bool(found.hint)) == (FAILED, True)


async def test_places_that_others_can_reach(patient: Patient) -> None:
    patient.socket.chmod(0o660)
    patient.directory.chmod(0o755)
    found = await patient.findings()
    for what, hint in {
        "admin socket": f"chmod 0600 {patient.socket}",
        "data directory": f"chmod 0700 {patient.directory}",
    }.items():
        assert (found[what].level, found[what].hint) == (FAILED, hint)
    patient.group = "admins"
    assert (await patient.findings())["admin socket"].level is OK, "the group is meant"
    patient.socket.unlink()
    assert (await patient.findings())["admin socket"].level is FAILED


async def test_authorities_that_cannot_sign(patient: Patient) -> None:
    patient.authorities = [authority(AuthorityKind.X509, patient.clock.now() + HOUR)]
    found = await patient.findings()
    assert found["x509 authority"].level is FAILED
    assert "clock" in found["x509 authority"].hint
    assert found["jwt authority"].level is FAILED
    assert "none is active" in found["jwt authority"].detail


async def test_attestors_are_asked_and_their_own_faults_are_findings(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "CHECK_SECONDS", 0.1)
    patient.verifiers = {
        "well": Plugin(Finding(what="keys", level=OK, detail="there")),
        "away": Plugin(Unavailable("nobody answers", reason="AWAY", hint="start it")),
        "crashes": Plugin(RuntimeError("boom")),
        "hangs": Plugin(None),
        "silent": object(),
    }
    found = await patient.findings()
    assert found["well: keys"].level is OK
    assert (found["away"].level, found["away"].detail, found["away"].hint) == (
        FAILED,
        "nobody answers (AWAY)",
        "start it",
    )
    assert (found["crashes"].level, found["crashes"].detail) == (FAILED, "its check crashed: RuntimeError")
    assert (found["hangs"].level, found["hangs"].detail) == (FAILED, "its check was not over within 0.1 s")
    assert "silent" not in found


async def test_a_store_that_does_not_answer(patient: Patient) -> None:
    patient.store = Store(error=Unavailable("no answer", reason="STORE_UNAVAILABLE", hint="start it"))
    found = (await patient.findings())["entries"]
    assert (found.level, found.detail, found.hint) == (FAILED, "no answer (STORE_UNAVAILABLE)", "start it")


@pytest.mark.parametrize(
    "lost", [agent("gone", banned=True), agent("gone", not_after=NOW - HOUR)], ids=["banned", "expired"]
)
def test_entries_of_agents_that_are_lost(lost: AttestedAgent) -> None:
    well = agent("well")
    every = [entry("/w", "unix:uid:1", id="1", parent_id=well.id), entry("/g", "unix:uid:1", id="2", parent_id=lost.id)]
    known = {one.id: one for one in (well, lost)}
    (found,) = entries(every, agents=known, trust_domain=TD, types={"unix"}, node_types=set(), now=NOW)
    assert (found.what, found.level) == ("entries of lost agents", WARNING)
    assert "`2`" in found.detail
    assert "`1`" not in found.detail
    assert "caadmin explain agent" in found.hint


def test_lives_that_do_not_fit() -> None:
    day = 24 * 3600
    (found,) = lives(SETTINGS, 7 * day, [entry("/w")])
    assert found.level is OK
    (found,) = lives(replace(SETTINGS, x509_svid_ttl_seconds=300), 7 * day, [])
    assert (found.level, found.detail) == (WARNING, "x509_svid_ttl_seconds is 300 s")
    assert "caadmin outage-budget" in found.hint
    (found,) = lives(SETTINGS, day, [entry("/w", id="9", x509_svid_ttl_seconds=day)])
    assert found.level is WARNING
    assert "`9`" in found.detail
    assert "ca_ttl_seconds" in found.hint


def test_agents_that_are_not_heard_of() -> None:
    live, over, banned = agent("live"), agent("over", not_after=NOW - HOUR), agent("banned", banned=True)
    well = agents([live, banned], lambda _: True, NOW)
    assert well.level is OK
    ended = agents([live, over], lambda _: True, NOW)
    assert (ended.level, "1 expired" in ended.detail, str(over.id) in ended.detail) == (WARNING, True, True)
    silent = agents([live], lambda _: False, NOW)
    assert (silent.level, "1 silent" in silent.detail) == (WARNING, True)
    assert silent.hint == f"`caadmin explain agent {live.id}`"
