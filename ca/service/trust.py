"""The trust bundles in memory: our own and those of federated trust domains, in step with the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ca.errors import Unavailable
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain

Listener = Callable[[TrustBundle], None]


class Trust:
    """What verification and delivery read. Only the follower of the change log writes it."""

    def __init__(self, trust_domain: TrustDomain) -> None:
        self.trust_domain = trust_domain
        self._bundles: dict[TrustDomain, TrustBundle] = {}
        self._listeners: list[Listener] = []

    @property
    def bundles(self) -> Mapping[TrustDomain, TrustBundle]:
        """Live view, by trust domain."""
        return self._bundles

    @property
    def own(self) -> TrustBundle:
        """Our own bundle. Raises Unavailable before the first authority was published."""
        bundle = self._bundles.get(self.trust_domain)
        if bundle is None:
            raise Unavailable("no trust bundle has been published yet", reason="NO_BUNDLE")
        return bundle

    def get(self, trust_domain: TrustDomain) -> TrustBundle | None:
        return self._bundles.get(trust_domain)

    def on_change(self, listener: Listener) -> None:
        """Calls `listener` with each bundle that was put, after it was put; with an empty one for one that is gone."""
        self._listeners.append(listener)

    def load(self, bundles: Iterable[TrustBundle]) -> None:
        """Takes over exactly these."""
        kept = {bundle.trust_domain: bundle for bundle in bundles}
        for trust_domain in [*self._bundles]:
            if trust_domain not in kept:
                self.remove(trust_domain)
        for bundle in kept.values():
            self.put(bundle)

    def put(self, bundle: TrustBundle) -> bool:
        """Takes over a bundle; False when nothing changed, so that nobody is told."""
        if self._bundles.get(bundle.trust_domain) == bundle:
            return False
        self._bundles[bundle.trust_domain] = bundle
        self._tell(bundle)
        return True

    def remove(self, trust_domain: TrustDomain) -> None:
        if self._bundles.pop(trust_domain, None) is not None:
            self._tell(TrustBundle(trust_domain=trust_domain))

    def _tell(self, bundle: TrustBundle) -> None:
        for listener in self._listeners:
            listener(bundle)
