"""Below a server that is polled nobody sends policies: an operator is told of it, where proxies ask for any."""

from __future__ import annotations

from ca.errors import FailedPrecondition
from ca.runtime.log import get
from sds.condition import Condition
from sds.envoy_status import SdsClients
from sds.policy_held import HeldPolicies

PART = "policies"
log = get("sds.policy")


class Unpushed:
    """Reports a problem to `condition` while the server is polled and any proxy asks for policies."""

    def __init__(self, held: HeldPolicies, clients: SdsClients, condition: Condition) -> None:
        self._held, self._clients, self._condition = held, clients, condition
        held.on_change.append(self.look)
        clients.on_answer.append(self.look)

    def look(self, *, asked: bool = False) -> None:
        """`asked`: somebody asks just now."""
        if not self._held.polled or not (asked or any(hasattr(c.stream.seen, "owners") for c in self._clients.all())):
            self._condition.clear(PART)
            return
        problem = not_pushed(self._held.revision)
        if self._condition.report(PART, problem):
            log.warning("nobody sends policies here", reason=problem.reason, detail=problem.detail, hint=problem.hint)


def not_pushed(in_force: int) -> FailedPrecondition:
    """What is wrong then; `in_force` is the revision that came when the server pushed, 0 for none."""
    goes = f"they go by revision {in_force} and hear of no newer one" if in_force else "they refuse everything"
    return FailedPrecondition(
        f"proxies ask for policies, and the server, which is polled, pushes none: {goes}",
        reason="POLICIES_NOT_PUSHED",
        hint="`push_service: true` in the configuration of a server of ours; SPIRE's has no policies to push",
    )
