"""Since when an authority is in the bundle, by this process's own eyes."""

from __future__ import annotations

from datetime import datetime

from ca.authority.state import Authority, AuthorityKind
from ca.identity.bundle import TrustBundle
from ca.identity.lineage import authority_ids, issuer_ids
from ca.ports import Clock
from ca.service.trust import Trust


class Publication:
    """Follows the own bundle from the start on."""

    def __init__(self, trust: Trust, clock: Clock) -> None:
        self._trust = trust
        self._clock = clock
        self._started_at = clock.now()
        bundle = trust.get(trust.trust_domain)
        self._found = frozenset(authority_ids(bundle)) if bundle else frozenset()
        """What was there when this process began."""
        self._seen: dict[str, datetime] = {}
        trust.on_change(self._changed)

    def anchor(self, authority: Authority) -> str | None:
        """The ID under which the bundle vouches for what the authority signs: its own, or that of a root above it. None
        while the bundle does not."""
        bundle = self._trust.get(self._trust.trust_domain)
        held = authority_ids(bundle) if bundle else ()
        return next((one for one in lineage(authority) if one in held), None)

    def since(self, authority: Authority) -> datetime | None:
        """When the bundle began to vouch for it, at the latest; None while it does not."""
        anchor = self.anchor(authority)
        if anchor is None:
            return None
        seen = self._seen.get(anchor)
        if seen is not None:
            return seen
        return authority.published_at if anchor == authority.authority_id else self._started_at

    def _changed(self, bundle: TrustBundle) -> None:
        if bundle.trust_domain != self._trust.trust_domain:
            return
        held, now = authority_ids(bundle), self._clock.now()
        self._seen = {one: self._seen.get(one, now) for one in held if one not in self._found}


def lineage(authority: Authority) -> tuple[str, ...]:
    """IDs of the authority and of what is above it, nearest first."""
    if authority.kind is AuthorityKind.JWT:
        return (authority.authority_id,)
    return issuer_ids(authority.authority_id, (authority.certificate, *authority.chain))
