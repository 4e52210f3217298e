"""ExplainAgent of burgee.admin.v1.Admin: an agent's row, its entries and its attestations, with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ca.api.convert.ids import seconds
from ca.errors import InvalidArgument
from ca.identity.entry import RegistrationEntry
from ca.ports import Clock
from ca.proto.burgee import admin_pb2 as pb
from ca.service.agent_explained import (
    OK,
    SHOWN_ATTEMPTS,
    AgentSeen,
    Node,
    agent_of,
    attempts_of,
    nodes_at,
    not_found,
    verdict,
)
from ca.service.attestation_ring import Attempt, AttestationRing
from ca.service.heard import Heard
from ca.service.peers import AgentTable
from ca.store.authorized import AuthorizedIndex
from ca.store.values import AttestedAgent

MAX_NAME_CHARACTERS = 2048
SHOWN_ENTRIES = 50
SHOWN_NODES = 20

TROUBLE = {"AGENT_NOT_FOUND": 1, OK: 2}
"""What needs nobody comes last; all else is trouble."""


class AgentExplainer:
    """Looks at memory alone: attempts are those that this server saw since its start."""

    def __init__(
        self, *, agents: AgentTable, index: AuthorizedIndex, heard: Heard, ring: AttestationRing, clock: Clock
    ) -> None:
        self._agents = agents
        self._index = index
        self._heard = heard
        self._ring = ring
        self._clock = clock

    def explain(self, name: str) -> pb.AgentExplanation:
        """Raises InvalidArgument (EXPLAIN_TARGET, AGENT_NAME_AMBIGUOUS), NotFound (AGENT_NOT_FOUND)."""
        if not 0 < len(name.strip("/")) <= MAX_NAME_CHARACTERS:
            raise InvalidArgument("name the agent that is to be explained", reason="EXPLAIN_TARGET")
        every = list(self._ring)
        nodes = nodes_at(name, every)
        if sum(node.agent_id is not None for node in nodes) > 1:
            return self._all(nodes)
        agent = agent_of(name, self._agents.agents, every)
        attempts = attempts_of(name, agent, every)
        if agent is None and not attempts:
            raise not_found(name)
        answer = self._answer(agent, attempts)
        if len(nodes) > 1 and answer.verdict.reason == OK and _later(nodes[1], nodes[0]):
            return self._all(nodes)  # somebody else is refused there
        return answer

    def _all(self, nodes: Sequence[Node]) -> pb.AgentExplanation:
        """Of nodes that share an address: who is in trouble stands before the rest."""
        answers = [
            self._answer(
                self._agents.agents.get(node.agent_id) if node.agent_id else None, node.attempts[:SHOWN_ATTEMPTS]
            )
            for node in nodes
        ]
        first, *others = sorted(answers, key=lambda answer: TROUBLE.get(answer.verdict.reason, 0))
        first.others.extend(others[:SHOWN_NODES])
        first.more_others = len(others[SHOWN_NODES:])
        return first

    def _answer(self, agent: AttestedAgent | None, attempts: Sequence[Attempt]) -> pb.AgentExplanation:
        entries = self._index.authorized(agent.id) if agent is not None else []
        heard = agent is not None and self._heard(agent.id)
        seen = AgentSeen(agent=agent, attempts=attempts, entries=len(entries), heard=heard)
        found = verdict(seen, self._clock.now())
        answer = pb.AgentExplanation(
            verdict=pb.AgentVerdict(reason=found.reason, detail=found.detail, hint=found.hint, command=found.command),
            connected=agent is not None and self._heard.here(agent.id),
            entry_count=len(entries),
            entries=[_entry(entry) for entry in entries[:SHOWN_ENTRIES]],
            attempts=[_attempt(made) for made in attempts],
        )
        if agent is not None:
            _describe(answer, agent)
        return answer


def _later(refused: Node, attested: Node) -> bool:
    """Whether the newest refusal came after the newest success."""
    won = [made.newest_at for made in attested.attempts if made.error is None]
    return not won or refused.attempts[0].newest_at > won[0]


def _describe(answer: pb.AgentExplanation, agent: AttestedAgent) -> None:
    answer.spiffe_id = str(agent.id)
    answer.attestation_type = agent.attestation_type
    answer.banned = agent.banned
    answer.can_reattest = agent.reattestable
    answer.svid_not_after = seconds(agent.not_after) if agent.serial else 0
    answer.svid_serial = agent.serial
    answer.agent_version = agent.agent_version
    answer.selectors.extend(str(selector) for selector in sorted(agent.selectors))


def _entry(entry: RegistrationEntry) -> pb.AgentEntry:
    return pb.AgentEntry(
        entry_id=entry.id,
        spiffe_id=str(entry.spiffe_id),
        selectors=[str(selector) for selector in sorted(entry.selectors)],
    )


def _attempt(made: Attempt) -> pb.AttestationAttempt:
    error = made.error
    return pb.AttestationAttempt(
        id=made.id,
        at_micros=_micros(made.at),
        micros=round(made.seconds * 1e6),
        attestor=made.attestor,
        peer=made.peer,
        spiffe_id=str(made.agent_id) if made.agent_id is not None else "",
        reason=error.reason if error is not None else OK,
        detail=error.detail if error is not None else "",
        cause=made.cause,
        notes=[pb.ComparedNote(what=note.what, value=note.value) for note in made.notes],
        again=made.again,
        last_at_micros=_micros(made.last_at),
    )


def _micros(moment: datetime | None) -> int:
    return round(moment.timestamp() * 1e6) if moment is not None else 0
