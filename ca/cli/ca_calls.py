"""The calls behind `caadmin ca`, and their answers as plain values."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.output import timestamp

if TYPE_CHECKING:
    from ca.proto.burgee import authority_pb2 as pb

STEP_SECONDS = 120.0
"""A new authority may be an upstream's, which may be slow."""


class Kind(StrEnum):
    """What an authority signs."""

    X509 = "x509"
    JWT = "jwt"


KindArgument = Annotated[Kind, typer.Argument(metavar="KIND", help="x509 or jwt.", show_choices=True)]


def status_value(status: pb.AuthoritiesStatus) -> dict[str, Any]:
    """Every authority, X.509 first, in the order in which they became valid."""
    ordered = sorted(status.authorities, key=lambda one: (one.kind != "x509", one.not_before))
    return {
        "server": status.server,
        "at": timestamp(status.now),
        "agents": status.agents,
        "has_upstream": status.has_upstream,
        "authorities": [authority_value(one) for one in ordered],
    }


def authority_value(one: pb.Authority) -> dict[str, Any]:
    """One of them, with what is to come and who is concerned."""
    return {
        "kind": one.kind,
        "authority_id": one.authority_id,
        "status": one.status,
        "tainted": one.tainted,
        "server": one.server,
        "upstream_authority_id": one.upstream_authority_id,
        "not_after": timestamp(one.not_after),
        "published_at": timestamp(one.published_at),
        "activated_at": timestamp(one.activated_at),
        "tainted_at": timestamp(one.tainted_at),
        "revoked_at": timestamp(one.revoked_at),
        "next_step": one.next_step,
        "next_at": timestamp(one.next_at),
        "last_safe_at": timestamp(one.last_safe_at),
        "agents_acked": one.agents_acked,
        "behind": blocker_values(one.behind),
        "behind_total": one.behind_total,
        "hanging": one.hanging,
        "alive": one.alive,
        "last_hanging_not_after": timestamp(one.last_hanging_not_after),
    }


def blocker_values(blockers: Any) -> list[dict[str, Any]]:
    """Who is in the way, or would be cut off."""
    return [
        {"kind": one.kind, "who": one.who, "reason": one.reason, "detail": one.detail, "until": timestamp(one.until)}
        for one in blockers
    ]


def step_value(step: str, answer: pb.StepResponse) -> dict[str, Any]:
    """What a step did, or would do."""
    return {
        "step": step,
        "done": answer.done,
        "authority_id": answer.authority_id,
        "cut_off": blocker_values(answer.cut_off),
        "cut_off_total": answer.cut_off_total,
    }


def rotate_value(answer: pb.RotateResponse) -> dict[str, Any]:
    """Where a rotation stands."""
    return {
        "replacing": answer.replacing,
        "successor": answer.successor,
        "step": answer.step,
        "done": answer.done,
        "finished": answer.finished,
        "agents_acked": answer.agents_acked,
        "agents": answer.agents,
        "hanging": answer.hanging,
        "alive": answer.alive,
        "waits_for": blocker_values(answer.waits_for),
        "waits_for_total": answer.waits_for_total,
    }
