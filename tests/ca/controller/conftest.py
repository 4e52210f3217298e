"""A real API server with our kinds, a server of ours, and a place of a test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.ca.controller.lab import Objects, Site, prepare
from tests.support.kube import Cluster, kube_lab
from tests.support.server import RunningServer, running_server


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    cluster = kube_lab()
    prepare(cluster)
    return cluster


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as server:
        yield server


@pytest.fixture
def objects(cluster: Cluster) -> Iterator[Objects]:
    made = Objects(cluster)
    yield made
    made.close()


@pytest.fixture
def site(cluster: Cluster) -> Site:
    return Site(cluster)
