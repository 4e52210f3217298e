"""The verdict of `explain workload`: one stable code for why a caller has no identity, and what to do next.

Values in, values out. What the caller himself is told is one of the values: of the cause he learns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from attestor.workload.run import Outcome
from ca.errors import BurgeeError
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from sds.condition import Problem
from sds.explain import EXPIRED_REASON, REMOVED_REASON, STORED_REASON, Near, no_identity

OK = "OK"
HEALTH = "caadmin health --agent"
DOCTOR = "caadmin doctor agent"


class Cause(StrEnum):
    """Why an attested caller has no identity. The values are reason codes."""

    NO_ENTRY_REASON = "NO_ENTRY"
    MISSING_REASON = "SELECTORS_MISSING"
    FAILED_REASON = "ATTESTOR_FAILED"
    ABSENT_REASON = "ATTESTOR_NOT_CONFIGURED"
    OUT_OF_TOUCH_REASON = "AGENT_OUT_OF_TOUCH"
    PENDING_REASON = "SVID_PENDING"
    MENDED_REASON = "MENDED_SINCE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An entry that the caller has earned. `not_after` of its X.509-SVID, None while that is not here; `reason` then
    says why, if somebody knows."""

    entry: RegistrationEntry
    not_after: datetime | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that is known of a caller and of its agent. `error`: why it could not be attested, or would be refused;
    `not_ready`: what the agent tells every caller now; `problem`: why; `sync`: why the server's word is missing."""

    selectors: frozenset[Selector] = frozenset()
    outcomes: Sequence[Outcome] = ()
    error: BurgeeError | None = None
    given: Sequence[Given] = ()
    near: Sequence[Near] = ()
    configured: frozenset[str] = frozenset()
    agent_id: SpiffeId | None = None
    not_ready: BurgeeError | None = None
    problem: Problem | None = None
    sync: Problem | None = None

    @property
    def failed(self) -> dict[str, BurgeeError]:
        """What each attestor met that could not tell."""
        return {outcome.attestor: outcome.error for outcome in self.outcomes if outcome.error is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`told` is the code that the caller gets, `reason` the cause; both are OK for a caller with an identity."""

    identity: bool = False
    told: str
    reason: str
    detail: str
    hint: str = ""
    command: str = ""


def verdict(seen: Seen) -> Verdict:
    """In the order in which things go wrong: the process, its attestors, the agent, the entries, the SVID."""
    if seen.error is not None:
        return _not_attested(seen, seen.error)
    if seen.not_ready is not None:
        return _not_ready(seen, seen.not_ready)
    if seen.given:
        return _given(seen.given)
    return _no_entry(seen)


def verdict_on_refusal(seen: Seen, refusal: BurgeeError, *, pid: int) -> Verdict:
    """Of a call that was refused a while ago; `seen` is the caller as he was, `pid` his process
    then, and the entries are as they are now."""
    if refusal.reason != no_identity().reason:
        return _not_attested(seen, refusal)
    if not seen.given:
        return _no_entry(seen)
    entry = seen.given[0].entry
    detail = f"it had no identity then; entry {entry.id} (`{entry.spiffe_id}`) would give it one now"
    return Verdict(
        told=refusal.reason,
        reason=Cause.MENDED_REASON,
        detail=detail,
        hint="most workloads ask again by themselves: restart one that does not, and ask with the pid that it has now",
        command=f"caadmin explain workload --pid {pid}",
    )


def why_missing(selector: Selector, seen: Seen) -> str:
    """Why the caller cannot have a selector now; empty where it was looked for."""
    if selector.type in seen.failed:
        return Cause.FAILED_REASON
    return "" if selector.type in seen.configured else Cause.ABSENT_REASON


def _not_attested(seen: Seen, error: BurgeeError) -> Verdict:
    if error.reason in ("ATTESTATION_FAILED", "WORKLOAD_ATTESTATION_FAILED") and seen.failed:
        return _attestor_failed(seen, next(iter(seen.failed)), told="ATTESTATION_FAILED")
    return Verdict(told=error.reason, reason=error.reason, detail=error.detail, hint=error.hint)


def _not_ready(seen: Seen, error: BurgeeError) -> Verdict:
    problem = seen.problem
    return Verdict(
        told=error.reason,
        reason=problem.reason if problem else error.reason,
        detail=f"this agent serves nobody: {problem.detail if problem else error.detail}",
        hint=problem.hint if problem else error.hint,
        command=HEALTH,
    )


def _given(given: Sequence[Given]) -> Verdict:
    here = [one for one in given if one.not_after is not None]
    if here:
        others = len(given) - len(here)
        more = f"; {others} more have no SVID yet" if others else ""
        detail = f"it gets {len(here)} of {len(given)} identities{more}" if others else _count(len(here))
        return Verdict(identity=True, told=OK, reason=OK, detail=detail)
    first = given[0]
    reason = first.reason or Cause.PENDING_REASON
    detail = f"entry {first.entry.id} gives it `{first.entry.spiffe_id}`, and there is no X.509-SVID for it yet"
    return Verdict(
        told=Cause.PENDING_REASON,
        reason=reason,
        detail=f"{detail} ({reason})" if first.reason else detail,
        hint="the agent asks its server again by itself; its log says what the server answers",
        command=HEALTH,
    )


def _no_entry(seen: Seen) -> Verdict:
    told = no_identity().reason
    for near in seen.near:
        if near.reason and not near.misses and not replaced(near, seen.near):
            return _out_of_use(near, told)
    first = next((near for near in seen.near if near.misses), None)
    if first is not None:
        for selector in first.misses:
            if selector.type in seen.failed:
                return _attestor_failed(seen, selector.type, told=told, near=first)
        absent = [selector.type for selector in first.misses if selector.type not in seen.configured]
        if absent:
            return _attestor_absent(absent[0], first, told)
    if seen.sync is not None:
        return _out_of_touch(seen.sync, told)
    if first is None:
        return _nothing_near(seen, told)
    lacking = ", ".join(map(str, first.misses))
    return Verdict(
        told=told,
        reason=Cause.MISSING_REASON,
        detail=f"entry {first.entry.id} (`{first.entry.spiffe_id}`) came nearest, and the process lacks {lacking}",
        hint="either the entry means another process, or it asks for too much: correct it on the server",
        command=f"caadmin entry show {first.entry.id}",
    )


def replaced(lost: Near, every: Sequence[Near]) -> bool:
    """Whether another entry that comes near was made since this one went: that is the one to look at. Entries tell
    their creation in whole seconds."""
    since = lost.since.replace(microsecond=0) if lost.since is not None else None
    made = (near.entry.created_at for near in every if near.misses)
    return since is not None and any(moment is not None and moment >= since for moment in made)


def _out_of_use(near: Near, told: str) -> Verdict:
    entry, since = near.entry, f" at {near.since:%Y-%m-%d %H:%M:%SZ}" if near.since else ""
    named = f"entry {entry.id} (`{entry.spiffe_id}`) fits"
    detail, hint, command = {
        EXPIRED_REASON: (
            f"{named}, and expired{since}",
            "give it a later end, or none, on the server; where it was pruned, create it anew",
            f"caadmin entry update {entry.id} --expires-at 0",
        ),
        REMOVED_REASON: (
            f"{named}, and the server took it away{since}",
            "it was deleted, or its parent is no longer this agent: the server's audit log says by whom",
            f"caadmin audit --item {entry.id}",
        ),
        STORED_REASON: (
            f"{named}, and is for a secret store alone",
            "an entry with store_svid is served to nobody: create another one for the workload",
            f"caadmin entry show {entry.id}",
        ),
    }[near.reason]
    return Verdict(told=told, reason=near.reason, detail=detail, hint=hint, command=command)


def _attestor_failed(seen: Seen, attestor: str, *, told: str, near: Near | None = None) -> Verdict:
    error = seen.failed[attestor]
    wanted = f", of which entry {near.entry.id} (`{near.entry.spiffe_id}`) wants selectors" if near else ""
    return Verdict(
        told=told,
        reason=Cause.FAILED_REASON,
        detail=f"the workload attestor `{attestor}`{wanted}, failed: {error.detail} ({error.reason})",
        hint=error.hint or f"mend what `{attestor}` depends on; the checks of the agent name it",
        command=DOCTOR,
    )


def _attestor_absent(kind: str, near: Near, told: str) -> Verdict:
    return Verdict(
        told=told,
        reason=Cause.ABSENT_REASON,
        detail=f"entry {near.entry.id} (`{near.entry.spiffe_id}`) wants selectors of `{kind}`, and this agent has no "
        "such workload attestor",
        hint=f"configure `{kind}` under `workload_attestors` of the agent, or correct the entry",
        command=f"caadmin entry show {near.entry.id}",
    )


def _out_of_touch(sync: Problem, told: str) -> Verdict:
    return Verdict(
        told=told,
        reason=Cause.OUT_OF_TOUCH_REASON,
        detail=f"no entry that this agent knows is for it, and since {sync.since:%Y-%m-%d %H:%M:%SZ} it hears no news: "
        f"{sync.detail} ({sync.reason})",
        hint=sync.hint,
        command=HEALTH,
    )


def _nothing_near(seen: Seen, told: str) -> Verdict:
    chosen = next((s for s in sorted(seen.selectors) if s.value.startswith("uid:")), None)
    chosen = chosen or next(iter(sorted(seen.selectors)), None)
    command = ""
    if seen.agent_id is not None and chosen is not None:
        name = f"spiffe://{seen.agent_id.trust_domain}/NAME"
        command = f"caadmin entry create --parent-id {seen.agent_id} --spiffe-id {name} --selector {_shell(chosen)}"
    return Verdict(
        told=told,
        reason=Cause.NO_ENTRY_REASON,
        detail="no entry of this agent wants any selector of this process",
        hint="create one below this agent, on the server; is there one below another parent?",
        command=command,
    )


def _shell(selector: Selector) -> str:
    text = str(selector)
    plain = all(character.isalnum() or character in ":/._-@=,+" for character in text)
    return text if plain else "'" + text.replace("'", "'\\''") + "'"


def _count(number: int) -> str:
    return "it gets an identity" if number == 1 else f"it gets {number} identities"
