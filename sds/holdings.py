"""What an agent tells the server that it holds, so that a rotation waits for those who need it and for nobody else."""

from __future__ import annotations

from collections import Counter

from ca.identity.lineage import authority_ids
from sds.cache import Cache
from sds.envoy_status import SdsClients
from sds.feed import BUNDLE, Held
from sds.views import Content


def holdings(kind: str, cache: Cache, clients: SdsClients) -> Held:
    """Of one kind of resource, as of now."""
    if kind == BUNDLE:
        return _bundles(cache, clients)
    counts = Counter(issuer for svid in cache.svids() for issuer in svid.issuer_ids)
    return Held(
        consumers=clients.consumers(kind, current=lambda content: _has_svids(content, cache)),
        svids=tuple(sorted(counts.items())),
    )


def _bundles(cache: Cache, clients: SdsClients) -> Held:
    consumers = clients.consumers(BUNDLE, current=lambda content: _has_bundles(content, cache))
    streams = max(cache.streams() - len(clients), 0)
    own = cache.bundle(cache.trust_domain)
    if own is None:
        return Held(consumers=consumers, workload_streams=streams)
    return Held(
        consumers=consumers,
        sequence=own.sequence_number,
        authorities=authority_ids(own),
        workload_streams=streams,
    )


def _has_bundles(content: Content, cache: Cache) -> bool:
    return all(cache.bundle(forms.trust_domain) is forms.bundle for forms in content.bundles)


def _has_svids(content: Content, cache: Cache) -> bool:
    return all(cache.svid(entry.id) is svid for entry, svid in content.svids)
