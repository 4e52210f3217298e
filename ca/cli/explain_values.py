"""The answers of ExplainWorkload and ExplainAgent as plain values, for JSON and for the pages that people read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ca.cli.output import timestamp

if TYPE_CHECKING:
    from ca.proto.burgee import admin_pb2, agent_pb2


def workload_value(answer: agent_pb2.WorkloadExplanation) -> dict[str, Any]:
    """Of `explain workload`."""
    verdict, caller = answer.verdict, answer.caller
    return {
        "verdict": {
            "identity": verdict.identity,
            "told": verdict.told,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "hint": verdict.hint,
            "command": verdict.command,
        },
        "process": {"pid": caller.pid, "uid": caller.uid, "gid": caller.gid, "share": caller.share},
        "attested_at": moment(answer.attested_at_micros),
        "attestors": [_attestor(one) for one in answer.attestors],
        "selectors": list(answer.selectors),
        "identities": [_identity(one) for one in answer.identities],
        "nearest": [_near(one) for one in answer.nearest],
        "agent": _agent(answer.agent),
        "history": [_past(one) for one in answer.history],
        "policies": [_policies(one) for one in answer.policies],
    }


def agent_value(answer: admin_pb2.AgentExplanation) -> dict[str, Any]:
    """Of `explain agent`; `others` are nodes that share the address which was asked for."""
    return {
        **_node(answer),
        "others": [_node(one) for one in answer.others],
        "more_others": answer.more_others,
    }


def _node(answer: admin_pb2.AgentExplanation) -> dict[str, Any]:
    verdict = answer.verdict
    return {
        "verdict": {
            "reason": verdict.reason,
            "detail": verdict.detail,
            "hint": verdict.hint,
            "command": verdict.command,
        },
        "spiffe_id": answer.spiffe_id,
        "attestation_type": answer.attestation_type,
        "banned": answer.banned,
        "can_reattest": answer.can_reattest,
        "svid_expires_at": timestamp(answer.svid_not_after),
        "svid_serial": answer.svid_serial,
        "version": answer.agent_version,
        "selectors": list(answer.selectors),
        "connected": answer.connected,
        "entry_count": answer.entry_count,
        "entries": [
            {"id": one.entry_id, "spiffe_id": one.spiffe_id, "selectors": list(one.selectors)} for one in answer.entries
        ],
        "attempts": [_attempt(one) for one in answer.attempts],
    }


def _policies(one: agent_pb2.Policies) -> dict[str, Any]:
    return {
        "spiffe_id": one.spiffe_id,
        "namespace": one.namespace,
        "labels": list(one.labels),
        "revision": one.revision,
        "policies": list(one.policies),
        "request_authentications": list(one.request_authentications),
        "detail": one.detail,
    }


def moment(micros: int) -> str | None:
    """Unix microseconds as RFC 3339 in UTC, to the millisecond; None for 0."""
    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="milliseconds") if micros else None


def _attestor(one: agent_pb2.AttestorOutcome) -> dict[str, Any]:
    return {
        "attestor": one.attestor,
        "ok": not one.reason,
        "reason": one.reason,
        "detail": one.detail,
        "hint": one.hint,
        "milliseconds": one.micros / 1000,
        "selectors": one.selectors,
        "notes": [{"what": note.what, "value": note.value} for note in one.notes],
    }


def _identity(one: agent_pb2.Identity) -> dict[str, Any]:
    return {
        "entry_id": one.entry_id,
        "spiffe_id": one.spiffe_id,
        "svid_expires_at": timestamp(one.svid_not_after),
        "reason": one.reason,
    }


def _near(one: agent_pb2.NearEntry) -> dict[str, Any]:
    return {
        "entry_id": one.entry_id,
        "spiffe_id": one.spiffe_id,
        "matches": list(one.matches),
        "misses": [{"selector": miss.selector, "reason": miss.reason} for miss in one.misses],
        "reason": one.reason,
        "since": timestamp(one.since),
    }


def _agent(status: agent_pb2.Status) -> dict[str, Any]:
    return {
        "spiffe_id": status.spiffe_id,
        "state": status.state,
        "reason": status.reason,
        "detail": status.detail,
        "svid_expires_at": timestamp(status.svid_not_after),
        "last_sync_at": timestamp(status.last_sync_at),
        "server_address": status.server_address,
        "entries": status.entries,
    }


def _past(one: agent_pb2.PastOutcome) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "at": moment(one.at_micros),
        "id": one.id,
        "reason": one.reason,
        "detail": one.detail,
        "selectors": one.selectors,
        "again": one.again,
        "last_at": moment(one.last_at_micros),
    }


def _attempt(one: admin_pb2.AttestationAttempt) -> dict[str, Any]:
    return {
        "id": one.id,
        "at": moment(one.at_micros),
        "milliseconds": one.micros / 1000,
        "attestor": one.attestor,
        "peer": one.peer,
        "spiffe_id": one.spiffe_id,
        "reason": one.reason,
        "detail": one.detail,
        "cause": one.cause,
        "notes": [{"what": note.what, "value": note.value} for note in one.notes],
        "again": one.again,
        "last_at": moment(one.last_at_micros),
    }
