"""What is known of a caller as the messages of ExplainWorkload."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attestor.workload.run import Outcome
from ca.proto.burgee import agent_pb2 as pb
from sds.attestation_ring import Attested, Record
from sds.explain import Near
from sds.verdict import OK, Given, Seen, Verdict, why_missing

SHOWN_HISTORY = 20
SHOWN_SELECTORS = 1000


def explanation(
    seen: Seen,
    verdict: Verdict,
    *,
    caller: pb.Caller,
    attested_at: datetime | None,
    status: pb.Status,
    history: Sequence[Record],
    policies: Sequence[pb.Policies] = (),
) -> pb.WorkloadExplanation:
    """All of it."""
    return pb.WorkloadExplanation(
        verdict=pb.Verdict(
            identity=verdict.identity,
            told=verdict.told,
            reason=verdict.reason,
            detail=verdict.detail,
            hint=verdict.hint,
            command=verdict.command,
        ),
        caller=caller,
        attested_at_micros=_micros(attested_at),
        attestors=[_attestor(outcome) for outcome in seen.outcomes],
        selectors=[str(selector) for selector in sorted(seen.selectors)[:SHOWN_SELECTORS]],
        identities=[_identity(one) for one in seen.given],
        nearest=[_near(near, seen) for near in seen.near],
        agent=status,
        history=[_past(record) for record in history[:SHOWN_HISTORY]],
        policies=policies,
    )


def caller(pid: int, uid: int, gid: int, share: str) -> pb.Caller:
    """A process as it called."""
    return pb.Caller(pid=pid, uid=uid, gid=gid, share=share)


def _attestor(outcome: Outcome) -> pb.AttestorOutcome:
    error = outcome.error
    return pb.AttestorOutcome(
        attestor=outcome.attestor,
        reason=error.reason if error is not None else "",
        detail=error.detail if error is not None else "",
        hint=error.hint if error is not None else "",
        micros=round(outcome.seconds * 1e6),
        selectors=len(outcome.selectors),
        notes=[pb.Note(what=note.what, value=note.value) for note in outcome.notes],
    )


def _identity(one: Given) -> pb.Identity:
    return pb.Identity(
        entry_id=one.entry.id,
        spiffe_id=str(one.entry.spiffe_id),
        svid_not_after=int(one.not_after.timestamp()) if one.not_after is not None else 0,
        reason="" if one.not_after is not None else one.reason,
    )


def _near(near: Near, seen: Seen) -> pb.NearEntry:
    return pb.NearEntry(
        entry_id=near.entry.id,
        spiffe_id=str(near.entry.spiffe_id),
        matches=[str(selector) for selector in near.matches[:SHOWN_SELECTORS]],
        misses=[
            pb.MissingSelector(selector=str(selector), reason=why_missing(selector, seen))
            for selector in near.misses[:SHOWN_SELECTORS]
        ],
        reason=near.reason,
        since=int(near.since.timestamp()) if near.since is not None else 0,
    )


def _past(record: Record) -> pb.PastOutcome:
    error = record.error
    past = pb.PastOutcome(
        kind="attested" if isinstance(record, Attested) else "refused",
        at_micros=_micros(record.at),
        reason=error.reason if error is not None else OK,
        detail=error.detail if error is not None else "",
    )
    if isinstance(record, Attested):
        past.selectors = len(record.selectors)
        past.again = record.again
        past.last_at_micros = _micros(record.last_at)
    else:
        past.id = record.id
    return past


def _micros(moment: datetime | None) -> int:
    return round(moment.timestamp() * 1e6) if moment is not None else 0
