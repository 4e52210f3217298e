"""Metrics of authorities: when each of them ends, until when can be signed, and what became of each rotation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ca.authority.journal import Journal
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find
from ca.identity.certificate import load_authority
from ca.runtime import metrics

_active = metrics.gauge("authority_not_after_seconds", "When the active authority expires, Unix time.", ["kind"])
_each = metrics.gauge(
    "authorities_not_after_seconds", "When each authority of this server expires.", ["kind", "status", "authority_id"]
)
_last = metrics.gauge(
    "signing_not_after_seconds", "Until when this server can sign if it gets no further authority, Unix time.", ["kind"]
)
_links = metrics.gauge(
    "upstream_link_not_after_seconds", "When each certificate above an SVID expires, from the active one up.", ["link"]
)
_blockers = metrics.gauge("rotation_blockers", "Who keeps a prepared authority from signing now.", ["kind"])

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)

rotations = metrics.counter("rotations", "Steps of rotations, by result.", ["kind", "step", "result"])
"""Results: ok, failed, refused, forced (by hand), overdue (at the last safe second, over somebody's head)."""


def show_blockers(kind: AuthorityKind, count: int) -> None:
    _blockers.labels(kind.value).set(count)


def show(own: Sequence[Authority], journal: Journal) -> None:
    """The gauges, as of this journal; `own` are the authorities of this server."""
    _each.clear()
    for one in own:
        if one.status != AuthorityState.REVOKED:
            _each.labels(one.kind.value, one.status.value, one.authority_id).set(one.not_after.timestamp())
    for kind in AuthorityKind:
        active = find(own, AuthorityState.ACTIVE, kind)
        if active is not None:
            _active.labels(kind.value).set(active.not_after.timestamp())
        _last.labels(kind.value).set(signs_until(own, kind).timestamp())
    _show_links(find(own, AuthorityState.ACTIVE, AuthorityKind.X509), journal)


def signs_until(own: Sequence[Authority], kind: AuthorityKind) -> datetime:
    """The last useful second of what can sign now, or will without any further authority."""
    slots = (AuthorityState.ACTIVE, AuthorityState.PREPARED)
    ends = [one.not_after for one in own if one.kind == kind and one.status in slots and not one.tainted]
    return max(ends, default=_NEVER)


def _show_links(active: Authority | None, journal: Journal) -> None:
    _links.clear()
    if active is None or not active.upstream_authority_id:
        return
    roots = [m.material for m in journal.upstream if m.authority_id == active.upstream_authority_id]
    links = {"authority": [active.certificate], "root": roots}
    links |= {f"intermediate-{number}": [certificate] for number, certificate in enumerate(active.chain, 1)}
    for link, certificates in links.items():
        ends = [load_authority(certificate).not_valid_after_utc for certificate in certificates]
        if ends:
            _links.labels(link).set(max(ends).timestamp())
