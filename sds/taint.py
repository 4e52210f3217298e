"""Which of the SVIDs held hang on a tainted authority, or on one that is gone, and from when on they are replaced."""

from __future__ import annotations

from collections.abc import Callable

from ca.identity.bundle import TrustBundle
from ca.identity.lineage import Taints
from ca.ports import Clock
from ca.runtime.log import get
from sds.cache import Cache
from sds.views import WorkloadSvid

SPREAD_SECONDS = 1.0
"""Agents begin to replace what is tainted at a random moment within this time: a fleet does not come at once."""

log = get("sds.rotation")


def taint_delay(jitter: float) -> float:
    """Seconds to wait with a replacement; `jitter` lies between -1 and 1."""
    return SPREAD_SECONDS * (1 + jitter) / 2


class TaintWatch:
    """Looks at the own trust domain's bundle. A newly tainted authority begins a delay; all else is at once."""

    def __init__(self, cache: Cache, clock: Clock, jitter: Callable[[], float]) -> None:
        self._cache = cache
        self._clock = clock
        self._jitter = jitter
        self._bundle: TrustBundle | None = None
        self._taints = Taints()
        self._begins = 0.0

    def look(self) -> None:
        """Takes over what the bundle says now."""
        bundle = self._cache.bundle(self._cache.trust_domain)
        if bundle is self._bundle:
            return
        before, self._bundle, self._taints = self._taints, bundle, self._after(bundle)
        if fresh := self._taints.tainted - before.tainted:
            self._begins = self._clock.monotonic() + taint_delay(self._jitter())
            count = sum(map(self.hits, self._cache.svids()))
            log.warning("an authority is tainted", reason="AUTHORITY_TAINTED", authorities=sorted(fresh), svids=count)

    def _after(self, bundle: TrustBundle | None) -> Taints:
        """With what was taken out of the bundle while SVIDs hang on it: no peer believes those any more, and a removal
        may be all that is seen of a taint."""
        now = Taints.of(bundle)
        if not now.clean:
            return now
        gone = (self._taints.tainted | self._taints.clean) - now.clean
        used = {issuer for svid in self._cache.svids() for issuer in svid.issuer_ids}
        return Taints(now.tainted | (gone & used), now.clean)

    def hits(self, svid: WorkloadSvid) -> bool:
        """Whether an SVID hangs on a tainted authority."""
        return self._taints.reach(svid.issuer_ids)

    def wait(self, svid: WorkloadSvid | None) -> float | None:
        """Seconds until an SVID is to be replaced because of a taint; None when it need not be."""
        if svid is None or not self._taints.tainted or not self.hits(svid):
            return None
        return max(self._begins - self._clock.monotonic(), 0.0)
