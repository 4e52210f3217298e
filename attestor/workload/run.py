"""Asks every workload attestor about one process, and keeps what each of them answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from ca.errors import BurgeeError, Internal, Unauthenticated, Unavailable
from ca.identity.selector import Selector
from ca.ports import Process, WorkloadAttestor
from ca.runtime.log import get

TIMEOUT_SECONDS = 5.0
log = get("attestor.workload")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one attestor found, or why it could not tell."""

    attestor: str
    selectors: frozenset[Selector] = frozenset()
    error: BurgeeError | None = None


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """The selectors of a process and how each attestor fared."""

    selectors: frozenset[Selector]
    outcomes: tuple[Outcome, ...]


async def attest_all(
    attestors: Mapping[str, WorkloadAttestor], process: Process, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Attestation:
    """All attestors at once; what some cannot tell is tolerated.

    Raises Unauthenticated when the process has gone, Unavailable when no attestor could tell anything.
    """
    process.ensure_alive()
    outcomes = await asyncio.gather(
        *(_attest(name, attestor, process, timeout_seconds) for name, attestor in attestors.items())
    )
    process.ensure_alive()  # whatever was found belongs to the process that called, and to no later owner of its pid
    for outcome in outcomes:
        if outcome.error is not None:
            log.warning(
                "workload attestor failed",
                attestor=outcome.attestor,
                pid=process.pid,
                reason=outcome.error.reason,
                detail=outcome.error.detail,
            )
    if outcomes and all(outcome.error is not None for outcome in outcomes):
        why = "; ".join(f"{o.attestor}: {o.error.detail}" for o in outcomes if o.error is not None)
        raise Unavailable(
            "workload attestation failed",
            reason="WORKLOAD_ATTESTATION_FAILED",
            hint="the agent's log says what each attestor met",
        ) from RuntimeError(why)
    found = frozenset().union(*(outcome.selectors for outcome in outcomes))
    return Attestation(selectors=found, outcomes=tuple(outcomes))


async def _attest(name: str, attestor: WorkloadAttestor, process: Process, timeout_seconds: float) -> Outcome:
    try:
        async with asyncio.timeout(timeout_seconds):
            selectors = await attestor.attest(process)
    except Unauthenticated:
        raise
    except BurgeeError as error:
        return Outcome(attestor=name, error=error)
    except TimeoutError:
        detail = f"no answer within {timeout_seconds:g} seconds"
        return Outcome(attestor=name, error=Unavailable(detail, reason="ATTESTOR_TIMEOUT"))
    except Exception:
        # A plugin's own fault must not take the other attestors' findings away.
        log.exception("workload attestor crashed", attestor=name, pid=process.pid)
        return Outcome(attestor=name, error=Internal("the attestor crashed", reason="ATTESTOR_CRASHED"))
    if any(selector.type != name for selector in selectors):
        # Selectors earn identities: an attestor vouches for its own type only.
        foreign = next(selector for selector in sorted(selectors) if selector.type != name)
        detail = f"returned the selector `{foreign}`, which is another attestor's"
        return Outcome(attestor=name, error=Internal(detail, reason="ATTESTOR_FOREIGN_SELECTOR"))
    return Outcome(attestor=name, selectors=selectors)
