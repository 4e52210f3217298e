"""What the REST face of policy is made of."""

from __future__ import annotations

from dataclasses import dataclass

from ca.api.audit import Auditor
from ca.ports import Clock
from ca.runtime.decision_log import DecisionLog
from ca.service.feed import Feed
from ca.service.policy.book import PolicyBook


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyParts:
    """The server has them all. `pushes`: agents are told of policies at all."""

    book: PolicyBook
    feed: Feed
    auditor: Auditor
    clock: Clock
    decisions: DecisionLog | None = None
    pushes: bool = True
