"""Attested agents on the wire, with their mask."""

from __future__ import annotations

from ca.api.convert.ids import id_message, seconds, selector_messages
from ca.proto.spire import types_pb2
from ca.store.values import AttestedAgent

_MASKED = (
    "attestation_type",
    "x509svid_serial_number",
    "x509svid_expires_at",
    "selectors",
    "banned",
    "can_reattest",
    "agent_version",
)


def agent_message(agent: AttestedAgent, mask: types_pb2.AgentMask | None = None) -> types_pb2.Agent:
    """The agent as seen through the mask; the id is always there. A banned agent has no serial number."""
    message = types_pb2.Agent(
        id=id_message(agent.id),
        attestation_type=agent.attestation_type,
        x509svid_serial_number="" if agent.banned else agent.serial,
        x509svid_expires_at=seconds(agent.not_after),
        selectors=selector_messages(agent.selectors),
        banned=agent.banned,
        can_reattest=agent.reattestable,
        agent_version=agent.agent_version,
    )
    if mask is not None:
        for field in _MASKED:
            if not getattr(mask, field):
                message.ClearField(field)  # type: ignore[arg-type]
    return message
