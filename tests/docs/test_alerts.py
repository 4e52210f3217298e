"""Each alert rule of the page trips on what it is for, by the programs' own metrics, and is quiet while all is well."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from ca.runtime import metrics
from tests.docs.pages import blocks
from tests.docs.promql import Scrapes, evaluate
from tests.docs.reason_codes import ROOT

for module in (
    "ca.controller.controller",
    "ca.service.background",
    "ca.service.issuance",
    "ca.service.rotation_metrics",
    "ca.service.server_svid",
    "ca.service.upstream_link",
    "ca.vault.keeper",
    "sds.agent_metrics",
    "sds.envoy_status",
):
    importlib.import_module(module)  # they declare their metrics

PAGE = ROOT / "docs/alerts.md"
RULES = {rule["alert"]: rule for block in blocks(PAGE, "yaml") for rule in yaml.safe_load(block)["groups"][0]["rules"]}
MINUTE, HOUR, DAY = 60, 3600, 86400
NOW = time.time()
Case = tuple[str, tuple[str, ...], float, float]
"""Metric, labels, what it says when all is well, and what trips the rule."""

ENDS: dict[str, Case] = {  # in seconds from now
    "BurgeeAuthorityNotRotated": ("authority_not_after_seconds", ("x509",), 2 * HOUR, HOUR - 1),
    "BurgeeSigningEnds": ("signing_not_after_seconds", ("jwt",), 7 * HOUR, 5 * HOUR),
    "BurgeeUpstreamLinkEnds": ("upstream_link_not_after_seconds", ("root",), 15 * DAY, 13 * DAY),
    "BurgeeUpstreamSilent": ("upstream_answered_timestamp_seconds", ("bundle",), -MINUTE, -HOUR - 1),
    "BurgeeVaultTokenEnds": ("vault_token_not_after_seconds", ("upstream",), 10 * MINUTE, 4 * MINUTE),
    "BurgeeServerSvidEnds": ("server_svid_not_after_seconds", (), 20 * MINUTE, 9 * MINUTE),
    "BurgeeWorkloadAboutToExpire": ("agent_workload_svid_not_after_seconds", (), 6 * MINUTE, 4 * MINUTE),
}
STATES: dict[str, Case] = {
    "BurgeeRotationBlocked": ("rotation_blockers", ("x509",), 0, 2),
    "BurgeeServerOutOfStep": ("sync_lag_seconds", (), 3, 90),
    "BurgeeAgentDegraded": ("agent_state", ("DEGRADED",), 0, 1),
    "BurgeeEnvoyGoesByWhatItHad": ("agent_sds_rejected", (), 0, 1),
    "BurgeeDeletionsHeld": ("controller_deletions_held", (), 0, 120),
    "BurgeePodCertificatesWait": ("pod_certificates_waiting", (), 0, 1),
}
COUNTS: dict[str, Case] = {  # how often since the scrape before
    "BurgeeRotationOverdue": ("rotations_total", ("x509", "activate", "overdue"), 0, 1),
    "BurgeeRotationFails": ("rotations_total", ("x509", "prepare", "failed"), 3, 4),
    "BurgeeEnvoyRejectsSecrets": ("agent_sds_nacks_total", (), 0, 1),
    "BurgeeLivesCutShort": ("issue_capped_total", ("x509", "AUTHORITY_EXPIRES"), 0, 1),
}


class Twin:
    """A metric with the name and the labels that the program declares, in a registry of its own."""

    def __init__(self, name: str, labels: tuple[str, ...]) -> None:
        original: Any = metrics.REGISTRY._names_to_collectors[f"burgee_{name}"]
        self.registry = CollectorRegistry()
        made = type(original)(original._name, "as declared", original._labelnames, registry=self.registry)
        self.metric = made.labels(*labels) if labels else made

    def scrape(self) -> str:
        return generate_latest(self.registry).decode()


def trips(alert: str, name: str, labels: tuple[str, ...], change: Callable[[Any], None]) -> bool:
    twin = Twin(name, labels)
    before = twin.scrape()
    change(twin.metric)
    return bool(evaluate(RULES[alert]["expr"], Scrapes(before=before, now=twin.scrape(), time=NOW)))


@pytest.mark.parametrize("alert", ENDS)
def test_what_ends_is_told_in_time(alert: str) -> None:
    name, labels, well, bad = ENDS[alert]
    assert not trips(alert, name, labels, lambda metric: metric.set(NOW + well))
    assert trips(alert, name, labels, lambda metric: metric.set(NOW + bad))


@pytest.mark.parametrize("alert", STATES)
def test_what_is_wrong_is_told(alert: str) -> None:
    name, labels, well, bad = STATES[alert]
    assert not trips(alert, name, labels, lambda metric: metric.set(well))
    assert trips(alert, name, labels, lambda metric: metric.set(bad))


@pytest.mark.parametrize("alert", COUNTS)
def test_what_happens_too_often_is_told(alert: str) -> None:
    name, labels, well, bad = COUNTS[alert]
    assert not trips(alert, name, labels, lambda metric: metric.inc(well))
    assert trips(alert, name, labels, lambda metric: metric.inc(bad))


def test_what_there_is_not_trips_nothing() -> None:
    """An agent without workloads has no first workload to expire; the authority's own end is the server's business."""
    assert not trips(
        "BurgeeWorkloadAboutToExpire", "agent_workload_svid_not_after_seconds", (), lambda metric: metric.set(0)
    )
    links = ("upstream_link_not_after_seconds", ("authority",))
    assert not trips("BurgeeUpstreamLinkEnds", *links, lambda metric: metric.set(NOW + HOUR))


def test_every_rule_is_tripped_and_explained() -> None:
    """A rule without a test, or without its line in the table, must not stay."""
    explained = set(re.findall(r"^\| `(Burgee\w+)` \|", PAGE.read_text(), re.M))
    assert ENDS.keys() | STATES.keys() | COUNTS.keys() == RULES.keys() == explained
