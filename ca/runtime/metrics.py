"""One Prometheus registry per process; modules declare their metrics here at import."""

from __future__ import annotations

from collections.abc import Sequence

from ca.runtime.stand_ins import stand_ins

# The library would load web servers and clients for servers and gateways of its own, which nothing here uses: two
# megabytes in every process.
with stand_ins("gzip", "http.server", "socketserver", "urllib.request", "wsgiref.simple_server"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

PREFIX = "burgee_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the exposition."""

REGISTRY = CollectorRegistry(auto_describe=True)
"""This process's registry. Names begin with `burgee_`, units are in names, expiry is an absolute Unix time."""

ProcessCollector(registry=REGISTRY)


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    """A number that only grows; `name` without prefix and without `_total`."""
    return Counter(PREFIX + name, text, labels, registry=REGISTRY)


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    """A number that goes up and down; an expiry is named `…_not_after_seconds` and holds Unix time."""
    return Gauge(PREFIX + name, text, labels, registry=REGISTRY)


def histogram(name: str, text: str, labels: Sequence[str] = (), *, buckets: Sequence[float]) -> Histogram:
    """A distribution, mostly of seconds."""
    return Histogram(PREFIX + name, text, labels, registry=REGISTRY, buckets=buckets)


def exposition(registry: CollectorRegistry = REGISTRY) -> bytes:
    """The registry in Prometheus' text format."""
    return generate_latest(registry)
