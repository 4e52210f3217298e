"""How long an identity's SVIDs live and why: what was asked, what is granted, what cuts it short, what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority.schedule import activate_at
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find
from ca.authority.ttls import longest_svid_ttl
from ca.errors import FailedPrecondition, NotFound
from ca.identity.spiffe_id import SpiffeId
from ca.issuing.lifetime import Cap, plan_lifetime
from ca.service.issuance import IssueSettings
from ca.service.live_index import Live
from ca.store.authorized import AuthorizedIndex

X509, JWT = AuthorityKind.X509, AuthorityKind.JWT


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A life in seconds, and where it is asked for: `entry`, or a key of the configuration."""

    kind: AuthorityKind
    seconds: int
    by: str
    entry_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """`cut_from`: from then on, until another authority signs, less is granted. `alive` X.509-SVIDs are in use."""

    asked: Asked
    granted_seconds: int
    caps: tuple[Cap, ...] = ()
    cut_from: datetime | None = None
    advice: str = ""
    alive: int = 0
    first_not_after: datetime | None = None


def asked_for(
    spiffe_id: SpiffeId, *, index: AuthorizedIndex, settings: IssueSettings, is_agent: bool, is_server: bool
) -> list[Asked]:
    """Every life that is asked for under this ID. Raises NotFound (TTL_NOBODY)."""
    if is_agent:
        return [Asked(kind=X509, seconds=settings.agent_ttl_seconds, by="agent_ttl_seconds")]
    if is_server:
        return [Asked(kind=X509, seconds=settings.x509_svid_ttl_seconds, by="x509_svid_ttl_seconds")]
    asked: list[Asked] = []
    for entry in index.by_spiffe_id(spiffe_id):
        own, default = entry.x509_svid_ttl_seconds, settings.x509_svid_ttl_seconds
        by = "entry" if own else "x509_svid_ttl_seconds"
        asked.append(Asked(kind=X509, seconds=own or default, by=by, entry_id=entry.id))
        own, default = entry.jwt_svid_ttl_seconds, settings.jwt_svid_ttl_seconds
        by = "entry" if own else "jwt_svid_ttl_seconds"
        asked.append(Asked(kind=JWT, seconds=own or default, by=by, entry_id=entry.id))
    if not asked:
        raise NotFound(
            f"nothing gives anybody the identity `{spiffe_id}`",
            reason="TTL_NOBODY",
            hint="`caadmin entry list` shows the entries that there are",
        )
    return asked


def explain(
    asked: Asked,
    *,
    own: Sequence[Authority],
    ca_ttl_seconds: int,
    backdate_seconds: int,
    alive: Sequence[Live],
    now: datetime,
) -> Explained:
    """One life. `own` are this server's authorities, `alive` the X.509-SVIDs of this ID."""
    held = [live for live in alive if asked.kind == X509 and asked.entry_id in ("", live.entry_id)]
    first = min((live.not_after for live in held), default=None)
    active = find(own, AuthorityState.ACTIVE, asked.kind)
    if active is None:
        advice = "nothing signs: see the server's log"
        return Explained(asked=asked, granted_seconds=0, advice=advice, alive=len(held), first_not_after=first)
    granted, caps = _granted(asked, active, backdate_seconds, now)
    cut_from = active.not_after - timedelta(seconds=asked.seconds)
    late = caps or cut_from < activate_at(active)
    return Explained(
        asked=asked,
        granted_seconds=granted,
        caps=caps,
        cut_from=cut_from if late else None,
        advice=_advice(asked, active, ca_ttl_seconds) if late else "",
        alive=len(held),
        first_not_after=first,
    )


def _granted(asked: Asked, active: Authority, backdate_seconds: int, now: datetime) -> tuple[int, tuple[Cap, ...]]:
    try:
        life = plan_lifetime(now, asked.seconds, asked.seconds, active.not_after, backdate_seconds)
    except FailedPrecondition as error:
        return 0, (Cap(reason=error.reason, detail=error.detail, not_after=active.not_after),)
    return life.granted_seconds, life.caps


def _advice(asked: Asked, active: Authority, ca_ttl_seconds: int) -> str:
    longest = longest_svid_ttl(ca_ttl_seconds)
    life = int((active.not_after - active.not_before).total_seconds())
    if asked.seconds <= longest and life < ca_ttl_seconds:
        above = "its upstream" if active.upstream_authority_id else "somebody"
        return f"{above} gave the authority {life} s instead of ca_ttl_seconds of {ca_ttl_seconds}: raise that there"
    if asked.seconds <= longest:
        return "nothing need be changed: the authority is late in its life, and its successor signs soon"
    where = f"entry `{asked.entry_id}`" if asked.by == "entry" else asked.by
    needed = asked.seconds * 6
    raised = f"ca_ttl_seconds of {needed} or more, or " if longest_svid_ttl(needed) >= asked.seconds else ""
    return f"{raised}{longest} s or less in {where}: an authority is replaced when a sixth of its life is left"
