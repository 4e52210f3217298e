"""The wire's messages as plain values for JSON, YAML and tables: IDs as texts, times in RFC 3339, units in names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ca.cli.exits import code_name
from ca.cli.output import timestamp
from ca.runtime.item_status import split_message

if TYPE_CHECKING:
    from ca.proto.burgee import admin_pb2
    from ca.proto.spire import types_pb2


def id_text(message: types_pb2.SPIFFEID) -> str:
    """`spiffe://…`, or nothing for an empty message."""
    return f"spiffe://{message.trust_domain}{message.path}" if message.trust_domain else ""


def entry_value(entry: types_pb2.Entry) -> dict[str, Any]:
    """A registration entry. What `entry create --file` reads has the same shape."""
    return {
        "id": entry.id,
        "spiffe_id": id_text(entry.spiffe_id),
        "parent_id": id_text(entry.parent_id),
        "selectors": [f"{selector.type}:{selector.value}" for selector in entry.selectors],
        "x509_svid_ttl_seconds": entry.x509_svid_ttl,
        "jwt_svid_ttl_seconds": entry.jwt_svid_ttl,
        "federates_with": list(entry.federates_with),
        "dns_names": list(entry.dns_names),
        "hint": entry.hint,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "store_svid": entry.store_svid,
        "expires_at": timestamp(entry.expires_at),
        "disable_x509_svid_prefetch": entry.additional_attributes.disable_x509_svid_prefetch,
        "jwt_svid_include_jti": entry.additional_attributes.jwt_svid_include_jti,
        "revision_number": entry.revision_number,
        "created_at": timestamp(entry.created_at),
    }


def agent_value(agent: types_pb2.Agent) -> dict[str, Any]:
    """An attested agent."""
    return {
        "spiffe_id": id_text(agent.id),
        "attestation_type": agent.attestation_type,
        "banned": agent.banned,
        "can_reattest": agent.can_reattest,
        "serial_number": agent.x509svid_serial_number,
        "expires_at": timestamp(agent.x509svid_expires_at),
        "selectors": [f"{selector.type}:{selector.value}" for selector in agent.selectors],
        "agent_version": agent.agent_version,
    }


def status_value(status: types_pb2.Status) -> dict[str, Any]:
    """The outcome of a batch's item; without a reason where the server told none."""
    message, reason = split_message(status.message)
    return {"code": code_name(status.code), "reason": reason, "message": message}


def lifetime_value(lifetime: admin_pb2.Lifetime) -> dict[str, Any]:
    """How long was asked for and granted, and what shortened it."""
    return {
        "requested_seconds": lifetime.requested_seconds,
        "granted_seconds": lifetime.granted_seconds,
        "caps": [
            {"reason": cap.reason, "detail": cap.detail, "not_after": timestamp(cap.not_after)} for cap in lifetime.caps
        ],
    }
