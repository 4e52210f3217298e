"""How long those get that are told of a new authority and cannot say that they have it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerWaits:
    """Counted from the authority's publication; only kinds of consumers that there are count.

    `workloads`: streams of the Workload API are told at once by the agent, and only have to act. `polling_agents`:
    SPIRE's ask every 5 seconds, and tell their workloads then. `files`: whoever reads the server's `bundle_file`.
    `downstream`: servers below this one ask every few seconds, and their agents them. `istio_proxies`: Istio's learn of
    a root with their next certificate.
    """

    workloads: timedelta = timedelta(seconds=10)
    polling_agents: timedelta = timedelta(seconds=30)
    files: timedelta = timedelta(seconds=60)
    downstream: timedelta = timedelta(seconds=120)
    istio_proxies: timedelta = timedelta(hours=1)
