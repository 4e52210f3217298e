"""Authorities, who is in a step's way, and what hangs on what, as messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice

from ca.api.convert.ids import seconds
from ca.authority.state import Authority
from ca.proto.burgee import authority_pb2 as pb
from ca.service.authority_outlook import Outlook
from ca.service.rotation_guard_port import Blocker


def unix(moment: datetime | None) -> int:
    """0 for none."""
    return 0 if moment is None else seconds(moment)


def authority_message(authority: Authority) -> pb.Authority:
    """Itself, and when which step of its life was taken."""
    return pb.Authority(
        kind=authority.kind.value,
        authority_id=authority.authority_id,
        status=authority.status.value,
        tainted=authority.tainted,
        server=authority.server,
        upstream_authority_id=authority.upstream_authority_id,
        not_before=seconds(authority.not_before),
        not_after=seconds(authority.not_after),
        published_at=seconds(authority.published_at),
        activated_at=unix(authority.activated_at),
        tainted_at=unix(authority.tainted_at),
        revoked_at=unix(authority.revoked_at),
    )


def outlook_message(outlook: Outlook, named: int) -> pb.Authority:
    """With what is to come, and who is concerned; of those who are behind `named` are named."""
    message = authority_message(outlook.authority)
    message.next_at = unix(outlook.next_at)
    message.next_step = outlook.next_step
    message.last_safe_at = unix(outlook.last_safe_at)
    message.agents_acked = outlook.agents_acked
    message.behind.extend(blocker_messages(outlook.behind, named))
    message.behind_total = len(outlook.behind)
    message.hanging = outlook.hanging
    message.alive = outlook.alive
    message.last_hanging_not_after = unix(outlook.last_hanging_not_after)
    return message


def blocker_messages(blockers: Iterable[Blocker], most: int) -> Sequence[pb.Blocker]:
    """The first of them."""
    return [
        pb.Blocker(kind=one.kind, who=one.who, reason=one.reason, detail=one.detail, until=unix(one.until))
        for one in islice(blockers, most)
    ]
