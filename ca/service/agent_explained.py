"""What became of a node's agent: which agent a name means, and one verdict with the next step. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.errors import BurgeeError, InvalidArgument, NotFound
from ca.identity.spiffe_id import SpiffeId
from ca.identity.text import quote
from ca.service.attestation_ring import Attempt
from ca.store.values import AttestedAgent

OK = "OK"
SHOWN_ATTEMPTS = 20
SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentVerdict:
    """`reason` is OK or a stable code; `command` is what to type next, empty where nothing is to be typed."""

    reason: str
    detail: str
    hint: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeen:
    """What is known of one agent; `agent` None where there are attempts alone. `heard`: it follows this server, or asks
    it every few seconds, or may do so with another server of this store."""

    agent: AttestedAgent | None
    attempts: Sequence[Attempt]
    entries: int
    heard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who came from an address, and what it tried, the newest first. Without `agent_id` those that proved nobody."""

    agent_id: SpiffeId | None
    attempts: Sequence[Attempt]


def nodes_at(address: str, every: Sequence[Attempt]) -> list[Node]:
    """Each that attested from there, and who did not get so far; empty for what is no address of any attempt."""
    here = [made for made in every if address in (made.peer, made.host, made.origin)]
    known = dict.fromkeys(made.agent_id for made in here)
    return [
        Node(agent_id=one, attempts=[made for made in (every if one else here) if made.agent_id == one])
        for one in sorted(known, key=lambda agent_id: agent_id is None)
    ]


def agent_of(
    name: str, agents: Mapping[SpiffeId, AttestedAgent], attempts: Sequence[Attempt] = ()
) -> AttestedAgent | None:
    """By its SPIFFE ID, by the end of its path, or by an attempt's id or address.

    Raises InvalidArgument (AGENT_NAME_AMBIGUOUS, SPIFFE_ID_*).
    """
    if "://" in name:
        return agents.get(SpiffeId.parse(name))
    end = "/" + name.strip("/")
    found = [agent for agent_id, agent in agents.items() if agent_id.path.endswith(end)]
    if not found:
        proved = {made.agent_id for made in attempts if made.agent_id is not None and _names(made, name)}
        found = [agents[agent_id] for agent_id in sorted(proved, key=str) if agent_id in agents]
    if len(found) > 1:
        named = ", ".join(f"`{agent.id}`" for agent in found[:SHOWN_NAMES])
        raise InvalidArgument(
            f"{quote(name)} stands for {len(found)} agents",
            reason="AGENT_NAME_AMBIGUOUS",
            hint=f"give the whole ID, such as {named}",
        )
    return found[0] if found else None


def attempts_of(name: str, agent: AttestedAgent | None, every: Sequence[Attempt]) -> list[Attempt]:
    """The newest first: those that proved this agent, and those by strangers that may have been meant for it, because
    they came from where it came from, or have `name` for their id, their address or in what the verifier noted."""
    own = [made for made in every if agent is not None and made.agent_id == agent.id]
    origins = {made.origin for made in own if made.error is None}

    def meant(made: Attempt) -> bool:
        if made.agent_id is not None:
            return made in own or (agent is None and (_names(made, name) or str(made.agent_id) == name))
        return _names(made, name) or made.origin in origins or any(note.value == name for note in made.notes)

    return [made for made in every if meant(made)][:SHOWN_ATTEMPTS]


def _names(made: Attempt, name: str) -> bool:
    return name in (made.id, made.peer, made.host, made.origin)


def not_found(name: str) -> NotFound:
    """Neither an agent nor an attempt."""
    return NotFound(
        f"no agent {quote(name)} has attested, and this server remembers no attempt to",
        reason="AGENT_NOT_FOUND",
        hint="does it reach this server? `caadmin health --agent` on the node says; `caadmin agent list` shows all",
    )


def verdict(seen: AgentSeen, now: datetime) -> AgentVerdict:
    """What matters first: a ban, a refusal since the last success, the end of the SVID, silence."""
    agent = seen.agent
    latest = seen.attempts[0] if seen.attempts else None
    if agent is None:
        if latest is None or latest.error is None:
            return AgentVerdict(
                reason="AGENT_NOT_FOUND",
                detail="it attested, and was evicted or pruned since",
                hint="it may attest again as soon as it has something to prove itself with",
            )
        return _refused(latest, latest.error)
    if agent.banned:
        return AgentVerdict(
            reason="AGENT_BANNED",
            detail="it is banned: it may neither attest nor be served",
            hint="evicting it lifts the ban; a node with a join token needs a new one as well",
            command=f"caadmin agent evict {agent.id}",
        )
    usable = max(agent.not_after, agent.pending_not_after or agent.not_after) > now
    if latest is not None and latest.error is not None and not (usable and seen.heard):
        return _refused(latest, latest.error)
    if not usable:
        return AgentVerdict(
            reason="AGENT_EXPIRED",
            detail=f"its SVID expired at {agent.not_after:%Y-%m-%d %H:%M:%SZ}, and it has not attested again",
            hint=_renewing(agent),
            command="" if agent.reattestable else f"caadmin agent evict {agent.id}",
        )
    if not seen.heard:
        return AgentVerdict(
            reason="AGENT_SILENT",
            detail="its SVID is valid, and this server hears nothing of it",
            hint="is the agent running, and does it reach this server? `caadmin health --agent` on the node says",
        )
    hint = "" if seen.entries else "no entry is for it yet: `caadmin entry create --parent-id` with its ID makes one"
    served = "1 entry" if seen.entries == 1 else f"{seen.entries} entries"
    return AgentVerdict(reason=OK, detail=f"it is attested, and may serve {served}", hint=hint)


def _refused(made: Attempt, error: BurgeeError) -> AgentVerdict:
    command = ""
    if error.reason == "AGENT_ALREADY_ATTESTED" and made.agent_id is not None:
        command = f"caadmin agent evict {made.agent_id}"
    elif error.reason.startswith("JOIN_TOKEN_"):
        command = "caadmin token create"
    detail = f"its attestation by `{made.attestor}` was refused at {made.newest_at:%Y-%m-%d %H:%M:%SZ}: {error.detail}"
    if made.cause:
        detail += f"; {made.cause}"
    return AgentVerdict(reason=error.reason, detail=detail, hint=error.hint, command=command)


def _renewing(agent: AttestedAgent) -> str:
    if agent.reattestable:
        return "it attests again by itself when it runs and reaches this server; its own log says why it does not"
    return "its method proves a node once: evict it, give it something new to prove itself with, and start it"
