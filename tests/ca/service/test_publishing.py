"""Copies of the trust bundle, looked after: at once on a change, through outages, each by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ca.errors import BurgeeError, ConfigError, Unavailable
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_pem import parse_pem
from ca.identity.spiffe_id import TrustDomain
from ca.runtime.config import from_values
from ca.runtime.metrics import REGISTRY
from ca.runtime.server_config import ServerConfig
from ca.service.configured import check
from ca.service.publishing import LOOK_SECONDS, MAX_BACKOFF_SECONDS, Publishing
from ca.service.trust import Trust
from tests.support.clock import FakeClock
from tests.support.server import eventually, running_server

TD = TrustDomain("example.org")


def bundle(*names: str) -> TrustBundle:
    authorities = tuple(X509Authority(certificate=name.encode()) for name in names)
    return TrustBundle(trust_domain=TD, x509_authorities=authorities)


class Place:
    """A publisher that keeps the copy itself; `error` is what stands in the way."""

    where = "a place"

    def __init__(self) -> None:
        self.copy: TrustBundle | None = None
        self.error: BurgeeError | None = None
        self.looks = 0
        self.closed = False

    async def publish(self, current: TrustBundle) -> bool:
        self.looks += 1
        if self.error is not None:
            raise self.error
        wrote = self.copy != current
        self.copy = current
        return wrote

    async def close(self) -> None:
        self.closed = True


class Lab:
    def __init__(self) -> None:
        self.clock, self.trust, self.place = FakeClock(), Trust(TD), Place()
        self.publishing = Publishing("lab", self.place, trust=self.trust, clock=self.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.publishing.run())
        await self.clock.advance(0)
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def behind(self) -> float:
        found = REGISTRY.get_sample_value("burgee_bundle_publish_behind_seconds", {"publisher": "lab"})
        assert found is not None
        return found


async def test_a_change_is_published_at_once() -> None:
    lab = Lab()
    lab.trust.put(bundle("a"))
    async with lab.running():
        assert lab.place.copy == bundle("a")
        lab.trust.put(bundle("a", "b"))
        await lab.clock.advance(0)
        assert lab.place.copy == bundle("a", "b")
        assert (lab.publishing.problem(), lab.behind) == (None, 0)
    assert lab.place.closed


async def test_bundles_of_others_are_no_change() -> None:
    lab = Lab()
    lab.trust.put(bundle("a"))
    async with lab.running():
        looks = lab.place.looks
        lab.trust.put(TrustBundle(trust_domain=TrustDomain("other.org")))
        await lab.clock.advance(1)
        assert lab.place.looks == looks


async def test_a_copy_is_looked_at_again_and_again() -> None:
    lab = Lab()
    lab.trust.put(bundle("a"))
    async with lab.running():
        lab.place.copy = None
        await lab.clock.advance(LOOK_SECONDS)
        assert lab.place.copy == bundle("a")


async def test_an_outage_is_told_and_ridden_out() -> None:
    lab = Lab()
    lab.trust.put(bundle("a"))
    async with lab.running():
        lab.place.error = Unavailable("no answer", reason="HTTP_UNREACHABLE")
        lab.trust.put(bundle("b"))
        await lab.clock.advance(300)
        problem = lab.publishing.problem()
        assert problem is not None
        assert (problem.reason, "a place" in problem.detail) == ("HTTP_UNREACHABLE", True)
        assert lab.behind >= 300
        assert lab.place.looks < 300 / MAX_BACKOFF_SECONDS + 10, "it is not asked without end"
        lab.place.error = None
        await lab.clock.advance(MAX_BACKOFF_SECONDS)
        assert (lab.place.copy, lab.publishing.problem(), lab.behind) == (bundle("b"), None, 0)


async def test_a_bundle_without_authorities_is_never_published() -> None:
    lab = Lab()
    lab.trust.put(bundle("a"))
    async with lab.running():
        lab.trust.put(bundle())
        await lab.clock.advance(LOOK_SECONDS)
        assert lab.place.copy == bundle("a")


def test_a_configuration_that_cannot_work_is_refused(tmp_path: Path) -> None:
    def config(plugin: str, **values: object) -> ServerConfig:
        publishers = {"p": {"plugin": plugin, "config": values}}
        return from_values(
            {"trust_domain": "example.org", "data_dir": str(tmp_path), "bundle_publishers": publishers}, ServerConfig
        )

    check(config("file", path="/x"))
    for wrong in (config("fil", path="/x"), config("file"), config("k8s_configmap", namespace="a/b")):
        with pytest.raises(ConfigError):
            check(wrong)


async def test_a_server_publishes_and_says_what_it_cannot(tmp_path: Path) -> None:
    good, theirs = tmp_path / "good.pem", tmp_path / "theirs"
    theirs.write_text("not yours\n")
    publishers = {
        "good": {"plugin": "file", "config": {"path": str(good)}},
        "bad": {"plugin": "file", "config": {"path": str(theirs)}},
    }
    async with running_server(bundle_publishers=publishers) as running:
        health = running.server.health
        await eventually(lambda: good.exists() and "publisher:bad" in health.warnings())
        assert [a.certificate for a in parse_pem(good.read_text(), TD).x509_authorities] == running.roots
        assert health.warnings()["publisher:bad"].reason == "PUBLISH_FOREIGN"
        assert health.ready, "the server works without"
        assert "publisher:good" not in health.warnings()
    assert theirs.read_text() == "not yours\n"
