"""What can be done to authorities, and what is written down afterwards. Pure: values in, values out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ca.authority.journal import Journal, KeyNote, UpstreamMember, depends_on
from ca.authority.state import Authority, AuthorityKind, AuthorityState, of_server
from ca.authority.story import state_of, way_on
from ca.errors import AlreadyExists, FailedPrecondition, NotFound

FORGOTTEN = timedelta(hours=24)
"""How long after its end an authority of another server is left to that server."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Wanted: make a key and publish its authority; then apply `Published`."""

    kind: AuthorityKind


@dataclass(frozen=True, slots=True)
class Published:
    """Done: this new authority (PREPARED) is in the bundle, in the same transaction that writes it down.

    `upstream` is what its upstream wants trusted.
    """

    authority: Authority
    upstream: tuple[UpstreamMember, ...] = ()


@dataclass(frozen=True, slots=True)
class Activate:
    """The prepared authority begins to sign; the one that signed becomes OLD."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Retire:
    """An authority that cannot sign any more, for its private key is lost, becomes OLD."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Taint:
    """An OLD authority is no longer to be relied on: what it signed is replaced everywhere."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Prune:
    """An OLD authority leaves the bundle, and its key is deleted; a REVOKED one is forgotten."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """A tainted authority leaves the bundle before its end."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class TaintUpstream:
    """A root of the upstream on which no active authority hangs is no longer to be relied on."""

    authority_id: str


@dataclass(frozen=True, slots=True)
class RevokeUpstream:
    """A tainted root of the upstream leaves the bundle, and with it what hangs on it."""

    authority_id: str


Due = Prepare | Activate | Prune
"""What a schedule can ask for."""

Action = Published | Activate | Retire | Taint | Prune | Revoke | TaintUpstream | RevokeUpstream
"""What can be applied."""


def apply(journal: Journal, action: Action, *, server: str, now: datetime) -> Journal:
    """The journal after `server` did this, authorities in the same order; new ones come last.

    Raises NotFound (AUTHORITY_UNKNOWN), AlreadyExists (AUTHORITY_EXISTS) or FailedPrecondition (AUTHORITY_STATE) when
    the action does not fit the state; then nothing has changed.
    """
    match action:
        case Published(authority, upstream):
            return _published(journal, authority, upstream, now)
        case Activate(authority_id):
            return _activated(journal, _own(journal, authority_id, server), now)
        case Retire(authority_id):
            return _with(journal, replace(_own(journal, authority_id, server), status=AuthorityState.OLD))
        case Taint(authority_id):
            target = _get(journal, authority_id, server)
            _require(target.status == AuthorityState.OLD, target, "taint", "only an old one can be tainted")
            _require(not target.tainted, target, "taint", "nothing is left to taint")
            return _with(journal, replace(target, tainted=True, tainted_at=now))
        case Revoke(authority_id):
            return _revoked(journal, _get(journal, authority_id, server), now)
        case Prune(authority_id):
            return _pruned(journal, _get(journal, authority_id, server), now)
        case TaintUpstream(authority_id):
            return _tainted_upstream(journal, authority_id, now)
        case RevokeUpstream(authority_id):
            return _revoked_upstream(journal, authority_id, now)


def _published(journal: Journal, new: Authority, upstream: tuple[UpstreamMember, ...], now: datetime) -> Journal:
    """A second preparation replaces the first, which stays in the bundle as OLD: somebody may have seen it."""
    if any(one.authority_id == new.authority_id for one in journal.authorities):
        raise AlreadyExists(f"authority `{new.authority_id}` exists", reason="AUTHORITY_EXISTS")
    if new.status != AuthorityState.PREPARED:
        raise ValueError("an authority begins as a prepared one")
    known = tuple(
        replace(one, status=AuthorityState.OLD)
        if _same_slot(one, new) and one.status == AuthorityState.PREPARED
        else one
        for one in journal.authorities
    )
    places = {member.place for member in journal.upstream}
    added = tuple(member for member in upstream if member.place not in places)
    return Journal(
        authorities=(*known, replace(new, prepared_at=now)),
        upstream=(*journal.upstream, *added),
        keys=tuple(note for note in journal.keys if (note.server, note.key_id) != (new.server, new.key_id)),
    )


def _activated(journal: Journal, target: Authority, now: datetime) -> Journal:
    _require(target.status == AuthorityState.PREPARED, target, "activate", "only a prepared one can be activated")
    _require(not target.tainted, target, "activate", "prepare another one")
    return replace(journal, authorities=tuple(_after_activation(one, target, now) for one in journal.authorities))


def _after_activation(authority: Authority, target: Authority, now: datetime) -> Authority:
    if authority is target:
        return replace(authority, status=AuthorityState.ACTIVE, activated_at=now)
    if _same_slot(authority, target) and authority.status == AuthorityState.ACTIVE:
        return replace(authority, status=AuthorityState.OLD)
    return authority


def _revoked(journal: Journal, target: Authority, now: datetime) -> Journal:
    _require(target.status == AuthorityState.OLD, target, "revoke", "only an old one can be revoked")
    _require(target.tainted, target, "revoke", "taint it first")
    return _without_keys(_with(journal, _ended(target, now)), [target], now)


def _pruned(journal: Journal, target: Authority, now: datetime) -> Journal:
    over = target.status == AuthorityState.REVOKED and now >= target.not_after
    _require(over or target.status == AuthorityState.OLD, target, "prune", "only an old one can be pruned")
    left = replace(journal, authorities=tuple(one for one in journal.authorities if one is not target))
    return _without_keys(left, [target], now) if target.status == AuthorityState.OLD else left


def _tainted_upstream(journal: Journal, authority_id: str, now: datetime) -> Journal:
    _require_upstream(journal, authority_id)
    if any(m.authority_id == authority_id and m.tainted for m in journal.upstream):
        raise _refused(f"upstream authority `{authority_id}` is tainted already")
    tainted = taint_root(journal, authority_id, now)
    upstream = tuple(replace(m, gone_at=m.gone_at or now) if _is_root(m, authority_id) else m for m in tainted.upstream)
    return replace(tainted, upstream=upstream)


def taint_root(journal: Journal, authority_id: str, now: datetime) -> Journal:
    """A root and whatever hangs on it are marked, whoever said so."""
    return replace(
        journal,
        authorities=tuple(
            replace(one, tainted=True, tainted_at=now) if depends_on(one, authority_id) and not one.tainted else one
            for one in journal.authorities
        ),
        upstream=tuple(replace(m, tainted=True) if _is_root(m, authority_id) else m for m in journal.upstream),
    )


def _revoked_upstream(journal: Journal, authority_id: str, now: datetime) -> Journal:
    _require_upstream(journal, authority_id)
    members = [member for member in journal.upstream if _is_root(member, authority_id)]
    if any(member.revoked_at for member in members):
        raise _refused(f"upstream authority `{authority_id}` is revoked already")
    if not all(member.tainted for member in members):
        raise _refused(f"upstream authority `{authority_id}` is not tainted: taint it first")
    upstream = tuple(replace(m, revoked_at=now) if _is_root(m, authority_id) else m for m in journal.upstream)
    return revoke_dependents(replace(journal, upstream=upstream), authority_id, now)


def revoke_dependents(journal: Journal, authority_id: str, now: datetime) -> Journal:
    """What hung on a root that is gone is believed by nobody: it is REVOKED, and its keys are to go."""
    ended = [one for one in journal.authorities if depends_on(one, authority_id)]
    kept = tuple(_ended(one, now) if one in ended else one for one in journal.authorities)
    return _without_keys(replace(journal, authorities=kept), ended, now)


def _require_upstream(journal: Journal, authority_id: str) -> None:
    if not any(_is_root(member, authority_id) for member in journal.upstream):
        raise NotFound(f"there is no upstream authority `{authority_id}`", reason="AUTHORITY_UNKNOWN")
    for one in journal.authorities:
        if depends_on(one, authority_id) and one.status == AuthorityState.ACTIVE:
            raise _refused(
                f"upstream authority `{authority_id}` is above `{one.authority_id}`, which signs on server "
                f"`{one.server}`: activate one below another root first"
            )


def forget_others(journal: Journal, *, server: str, now: datetime) -> Journal:
    """Without what servers left that never came back: authorities whose end was `FORGOTTEN` ago, and what the upstream
    of a server named that has none any more. Their keys, if they are found again, are to be deleted."""
    gone = [one for one in journal.authorities if one.server != server and now >= one.not_after + FORGOTTEN]
    kept = tuple(one for one in journal.authorities if one not in gone)
    alive = {server, *(one.server for one in kept)}
    upstream = tuple(member for member in journal.upstream if member.server in alive)
    unnoted = [one for one in gone if one.status != AuthorityState.REVOKED]
    return _without_keys(replace(journal, authorities=kept, upstream=upstream), unnoted, now)


def _ended(authority: Authority, now: datetime) -> Authority:
    return replace(authority, status=AuthorityState.REVOKED, revoked_at=now)


def _without_keys(journal: Journal, ended: list[Authority], now: datetime) -> Journal:
    notes = tuple(KeyNote(server=one.server, key_id=one.key_id, kind=one.kind, since=now) for one in ended)
    return replace(journal, keys=(*journal.keys, *notes))


def _is_root(member: UpstreamMember, authority_id: str) -> bool:
    return member.kind == AuthorityKind.X509 and member.authority_id == authority_id


def _same_slot(one: Authority, other: Authority) -> bool:
    return one.kind == other.kind and one.server == other.server


def _with(journal: Journal, changed: Authority) -> Journal:
    place = (changed.server, changed.authority_id)
    return replace(
        journal,
        authorities=tuple(changed if (one.server, one.authority_id) == place else one for one in journal.authorities),
    )


def _own(journal: Journal, authority_id: str, server: str) -> Authority:
    target = _get(journal, authority_id, server)
    if target.server != server:
        raise _refused(f"{target.kind} authority `{authority_id}` is that of server `{target.server}`: ask that one")
    return target


def _get(journal: Journal, authority_id: str, server: str) -> Authority:
    """This server's own, before another's."""
    own_first = (*of_server(journal.authorities, server), *journal.authorities)
    for authority in own_first:
        if authority.authority_id == authority_id:
            return authority
    raise NotFound(f"there is no authority `{authority_id}`", reason="AUTHORITY_UNKNOWN")


def _require(condition: bool, authority: Authority, step: str, advice: str) -> None:
    if not condition:
        raise _refused(
            f"{authority.kind} authority `{authority.authority_id}` {state_of(authority)}: {advice}",
            f"{way_on(authority, step)}; see `caadmin ca status`",
        )


def _refused(detail: str, hint: str = "see `caadmin ca status`") -> FailedPrecondition:
    return FailedPrecondition(detail, reason="AUTHORITY_STATE", hint=hint)
