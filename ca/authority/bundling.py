"""What of the journal is in the trust bundle; what others put there stays as it is. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from ca.authority.journal import Journal
from ca.authority.state import AuthorityKind, AuthorityState
from ca.errors import AlreadyExists
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority


def bundled(bundle: TrustBundle, before: Journal, after: Journal, *, now: datetime) -> TrustBundle:
    """The bundle as the journal changes: what left goes, what came is added, taints are shown and never taken back.

    What should be there and is not is added too, unless it has ended. Raises AlreadyExists (KEY_ID_IN_USE) where a key
    id is another key's: one of the two would verify nothing.
    """
    return replace(
        bundle, x509_authorities=_x509(bundle, before, after, now), jwt_authorities=_jwt(bundle, before, after, now)
    )


def _x509(bundle: TrustBundle, before: Journal, after: Journal, now: datetime) -> tuple[X509Authority, ...]:
    wanted = _roots(after)
    gone = _roots(before).keys() - wanted.keys()
    members = {m.certificate: m for m in bundle.x509_authorities if m.certificate not in gone}
    for certificate, (tainted, ends) in wanted.items():
        known = members.get(certificate)
        if known is None and (ends is None or ends > now):
            members[certificate] = X509Authority(certificate=certificate, tainted=tainted)
        elif known is not None and tainted:
            members[certificate] = replace(known, tainted=True)
    return tuple(members.values())


def _jwt(bundle: TrustBundle, before: Journal, after: Journal, now: datetime) -> tuple[JwtAuthority, ...]:
    wanted = _keys(after)
    gone = _keys(before).keys() - wanted.keys()
    members = {member.key_id: member for member in bundle.jwt_authorities if member.key_id not in gone}
    for key_id, key in wanted.items():
        known = members.get(key_id)
        if known is not None and known.public_key != key.public_key:
            raise AlreadyExists(f"key ID `{key_id[:64]}` is in use by another key", reason="KEY_ID_IN_USE")
        if known is None and (key.expires_at is None or key.expires_at > now):
            members[key_id] = key
        elif known is not None and key.tainted:
            members[key_id] = replace(known, tainted=True)
    return tuple(members.values())


def _roots(journal: Journal) -> dict[bytes, tuple[bool, datetime | None]]:
    """Certificate → whether it is tainted, and its end. Below an upstream the roots alone, whoever named them."""
    found: dict[bytes, tuple[bool, datetime | None]] = {}
    for one in journal.authorities:
        if one.kind == AuthorityKind.X509 and one.status != AuthorityState.REVOKED and not one.upstream_authority_id:
            found[one.certificate] = (one.tainted, one.not_after)
    for member in journal.upstream:
        if member.kind == AuthorityKind.X509 and member.revoked_at is None:
            tainted = member.tainted or found.get(member.material, (False, None))[0]
            found[member.material] = (tainted, member.expires_at)
    return found


def _keys(journal: Journal) -> dict[str, JwtAuthority]:
    """By key id; a server's own before what its upstream says of it."""
    found: dict[str, JwtAuthority] = {}
    for member in journal.upstream:
        if member.kind == AuthorityKind.JWT and member.revoked_at is None:
            found[member.authority_id] = JwtAuthority(
                key_id=member.authority_id,
                public_key=member.material,
                expires_at=member.expires_at,
                tainted=member.tainted or (member.authority_id in found and found[member.authority_id].tainted),
            )
    for one in journal.authorities:
        if one.kind == AuthorityKind.JWT and one.status != AuthorityState.REVOKED:
            known = found.get(one.authority_id)
            found[one.authority_id] = JwtAuthority(
                key_id=one.authority_id,
                public_key=one.public_key,
                expires_at=one.not_after,
                tainted=one.tainted or (known is not None and known.tainted),
            )
    revoked = {
        one.authority_id
        for one in journal.authorities
        if one.kind == AuthorityKind.JWT and one.status == AuthorityState.REVOKED
    }
    return {key_id: key for key_id, key in found.items() if key_id not in revoked}
