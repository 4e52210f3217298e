from __future__ import annotations

import pytest

from ca.errors import Code, Denied, FailedPrecondition, Unavailable
from sds.condition import Condition
from sds.health import delivery_problem, no_service, serving
from tests.sds.lab import Lab, entry
from tests.support.clock import FakeClock


@pytest.fixture
async def lab():
    lab = Lab(clock=FakeClock())
    yield lab
    await lab.keys.close()


def reason(lab: Lab, condition: Condition) -> str:
    problem = delivery_problem(lab.cache, lab.rotator, condition, lab.clock)
    assert serving(lab.cache, lab.rotator, condition, lab.clock) == (problem is None)
    return problem.reason if problem else ""


async def test_ready_means_that_a_workload_could_get_an_svid_now(lab: Lab):
    condition = Condition(lab.clock)
    assert reason(lab, condition) == "AGENT_STARTING"
    condition.report("sync", Unavailable("nobody answers", reason="SERVER_UNREACHABLE"))
    assert reason(lab, condition) == "SERVER_UNREACHABLE"
    lab.snapshot()
    assert reason(lab, condition) == ""  # an empty agent is a healthy agent
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    assert reason(lab, condition) == ""


async def test_a_lost_server_matters_once_something_is_missing(lab: Lab):
    condition = Condition(lab.clock)
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    lab.server.down = True
    lab.clock.jump(2000)  # type: ignore[attr-defined]
    await lab.rotator.round()
    assert reason(lab, condition) == ""  # what is here is valid for a while
    lab.clock.jump(1600)  # type: ignore[attr-defined]
    assert reason(lab, condition) == "SERVER_UNREACHABLE"


async def test_an_entry_in_use_without_an_svid_is_a_problem(lab: Lab):
    condition = Condition(lab.clock)
    lab.server.refuse = {"b"}
    lab.snapshot(entry("a"), entry("b"))
    await lab.rotator.round()
    assert reason(lab, condition) == ""  # nobody uses it
    lab.cache.subscribe(entry("b").selectors, needs_svid=True)
    assert reason(lab, condition) == "ENTRY_NOT_AUTHORIZED"


async def test_a_banned_agent_is_not_ready(lab: Lab):
    condition = Condition(lab.clock)
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    condition.banned(Denied("the agent is banned", reason="AGENT_BANNED"))
    assert reason(lab, condition) == "AGENT_BANNED"


async def test_callers_learn_the_code_of_what_keeps_an_identity_away_and_no_more(lab: Lab):
    condition = Condition(lab.clock)
    assert no_service(condition).reason == "AGENT_STARTING"
    condition.report("sync", Unavailable("10.0.0.1 hangs", reason="SERVER_UNREACHABLE"))
    assert no_service(condition).reason == "AGENT_STARTING"
    condition.report("identity", FailedPrecondition("token t1 was used", reason="ATTESTATION_REFUSED", hint="see t1"))
    told = no_service(condition)
    assert (told.code, told.reason) == (Code.UNAVAILABLE, "AGENT_NOT_READY")
    assert told.detail == "the agent has no identity (ATTESTATION_REFUSED)"
    assert "t1" not in told.hint
    assert reason(lab, condition) == "ATTESTATION_REFUSED"
    condition.started()
    assert no_service(condition).reason == "AGENT_STARTING", "an identity it has; the entries are under way"
    condition.banned(Denied("the agent is banned", reason="AGENT_BANNED"))
    assert (no_service(condition).code, no_service(condition).reason) == (Code.PERMISSION_DENIED, "AGENT_BANNED")
