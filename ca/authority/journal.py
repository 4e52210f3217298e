"""All that is written down about authorities, as one value: whoever reads it can carry on where another stopped."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority.state import Authority, AuthorityKind, AuthorityState

GONE_PATIENCE = timedelta(seconds=60)
"""How long an upstream may be silent about what it named before, until that counts as gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyNote:
    """A private key of a server that may exist and belongs to no authority: one that is being made, or one to be
    deleted. Whatever interrupts the work, the key is found again by its note and deleted."""

    server: str
    key_id: str
    kind: AuthorityKind
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamMember:
    """A root, or a JWT authority, that the upstream of a server publishes.

    `material` is DER: certificate (x509) or SubjectPublicKeyInfo (jwt). A root that is made anew with the same key has
    the same `authority_id`: what is tainted is the key, so both are; what comes and goes is each. `gone_at`: since
    when the upstream names it no more; one that an operator taints counts as gone until it is named again.
    `revoked_at`: it was revoked here, and what the upstream says does not bring it back.
    """

    server: str
    kind: AuthorityKind
    authority_id: str
    material: bytes
    expires_at: datetime | None = None
    tainted: bool = False
    gone_at: datetime | None = None
    revoked_at: datetime | None = None

    @property
    def place(self) -> tuple[str, AuthorityKind, str, bytes]:
        """What makes it one of its own."""
        return self.server, self.kind, self.authority_id, self.material

    def is_gone(self, now: datetime) -> bool:
        """For longer than one server of the upstream may lag behind another."""
        return self.gone_at is not None and now >= self.gone_at + GONE_PATIENCE

    def has_ended(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Of all servers of the trust domain that share the store."""

    authorities: tuple[Authority, ...] = ()
    upstream: tuple[UpstreamMember, ...] = ()
    keys: tuple[KeyNote, ...] = ()


def depends_on(authority: Authority, upstream_authority_id: str) -> bool:
    """Whether this authority's signatures are believed because of that root."""
    return authority.upstream_authority_id == upstream_authority_id and authority.status != AuthorityState.REVOKED


def condemned(journal: Journal, server: str, *, now: datetime) -> frozenset[str]:
    """Roots on which this server is to build nothing new: tainted or revoked anywhere, or for a while named no more by
    its own upstream."""
    roots = [member for member in journal.upstream if member.kind == AuthorityKind.X509]
    own = [member for member in roots if member.server == server]
    named = {member.authority_id for member in own if not member.is_gone(now)}
    gone = {member.authority_id for member in own} - named
    return frozenset(gone.union(member.authority_id for member in roots if member.tainted or member.revoked_at))


def sound(journal: Journal, server: str, *, now: datetime) -> frozenset[str]:
    """Roots of this server's own upstream on which it may build."""
    own = {one.authority_id for one in journal.upstream if one.server == server and one.kind == AuthorityKind.X509}
    return frozenset(own - condemned(journal, server, now=now))
