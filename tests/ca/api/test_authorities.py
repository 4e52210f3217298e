"""Rotating by hand over the wire: rehearsed, refused with words that say what to do, forced and on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ca.proto.burgee import admin_pb2, node_pb2
from ca.proto.burgee import authority_pb2 as pb
from ca.proto.burgee.authority_pb2_grpc import AuthoritiesStub
from tests.ca.api.refusals import Code, refused
from tests.support.server import RunningServer, entry, eventually, make_csr, running_server


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as server:
        yield server


class Operator:
    """The local administrator."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.stub: Any = AuthoritiesStub(server.local.channel)

    async def status(self, kind: str = "x509", named: int = 20) -> list[pb.Authority]:
        return list((await self.stub.GetStatus(pb.GetStatusRequest(kind=kind, named=named))).authorities)

    async def only(self, state: str, kind: str = "x509") -> pb.Authority:
        (found,) = [one for one in await self.status(kind) if one.status == state]
        return found

    async def step(self, name: str, authority_id: str = "", kind: str = "x509", **fields: Any) -> pb.StepResponse:
        request = pb.StepRequest(kind=kind, authority_id=authority_id, **fields)
        return await getattr(self.stub, name)(request)

    async def replaced(self, kind: str = "x509") -> tuple[str, str]:
        """A rotation as far as the activation: (old, new)."""
        old = (await self.only("active", kind)).authority_id
        new = (await self.step("Prepare", kind=kind)).authority_id
        await self.step("Activate", new, kind)
        return old, new

    async def rotate(self, **fields: Any) -> pb.RotateResponse:
        return await self.stub.Rotate(pb.RotateRequest(kind="x509", **fields))


@pytest.fixture
def operator(server: RunningServer) -> Operator:
    return Operator(server)


async def workload(server: RunningServer) -> tuple[Any, str]:
    """An agent that pushes nothing, with an SVID for its workload: (agent's caller, entry id)."""
    identity, caller = await server.agent()
    (made,) = await server.create(entry("/web", identity.path))
    await issue(caller, made.id)
    return caller, made.id


async def issue(caller: Any, entry_id: str) -> None:
    from ca.proto.spire import server_svid_pb2

    params = [server_svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=make_csr())]
    await caller.svids.BatchNewX509SVID(server_svid_pb2.BatchNewX509SVIDRequest(params=params))


async def acknowledge(caller: Any, *authorities: str) -> Any:
    """A stream of the agent on which it says what it holds."""
    call = caller.node.Sync()
    await call.write(node_pb2.SyncRequest(subscribe=node_pb2.Subscribe(agent_version="test")))
    await call.read()
    await call.write(node_pb2.SyncRequest(ack=node_pb2.Ack(kind="bundle", revision=1, authorities=authorities)))
    return call


async def test_the_status_of_a_fresh_server(operator: Operator) -> None:
    for kind in ("x509", "jwt"):
        (one,) = await operator.status(kind)
        assert (one.status, one.tainted, one.next_step, one.behind_total) == ("active", False, "prepare", 0)
        assert one.published_at <= one.activated_at < one.next_at < one.not_after


async def test_a_rotation_step_by_step(operator: Operator) -> None:
    rehearsed = await operator.step("Prepare", dry_run=True)
    assert not rehearsed.done
    assert len(await operator.status()) == 1
    made = await operator.step("Prepare")
    assert made.done
    prepared = await operator.only("prepared")
    assert prepared.authority_id == made.authority_id == made.authority.authority_id
    assert prepared.next_step == "activate"
    assert prepared.last_safe_at
    old = (await operator.only("active")).authority_id
    assert (await operator.step("Activate", made.authority_id)).authority.status == "active"
    assert (await operator.only("old")).authority_id == old
    assert (await operator.step("Taint", old)).authority.tainted


async def test_an_agent_that_is_behind_keeps_a_new_authority_from_signing(
    server: RunningServer, operator: Operator
) -> None:
    caller, _ = await workload(server)
    old = (await operator.only("active")).authority_id
    new = (await operator.step("Prepare")).authority_id
    prepared = await operator.only("prepared")
    assert (prepared.agents_acked, prepared.behind_total, prepared.behind[0].reason) == (0, 1, "AGENT_SILENT")
    rehearsed = await operator.step("Activate", new, dry_run=True)
    assert (rehearsed.done, rehearsed.cut_off_total) == (False, 1)
    assert "spiffe://example.org/web there would refuse" in rehearsed.cut_off[0].detail
    with refused(Code.FAILED_PRECONDITION, f"caadmin ca activate x509 {new} --force", "ROTATION_BLOCKED"):
        await operator.step("Activate", new)
    stream = await acknowledge(caller, old, new)

    async def acked() -> bool:
        return (await operator.only("prepared")).agents_acked == 1

    await eventually(acked)
    assert (await operator.step("Activate", new)).done
    stream.cancel()


async def test_force_does_it_all_the_same_and_is_on_record(server: RunningServer, operator: Operator) -> None:
    await workload(server)
    new = (await operator.step("Prepare")).authority_id
    forced = await operator.step("Activate", new, force=True)
    assert (forced.done, forced.cut_off_total) == (True, 1)
    pages = server.local.admin.ListAudit(admin_pb2.ListAuditRequest(item=new))
    records = [record async for page in pages for record in page.records]
    assert [(record.call.rpartition("/")[2], record.items[0].about) for record in records] == [
        ("Prepare", ""),
        ("Activate", "x509, forced"),
    ]


async def test_a_rehearsed_preparation_is_on_record_as_one(server: RunningServer, operator: Operator) -> None:
    await operator.stub.Prepare(pb.StepRequest(kind="x509", dry_run=True))
    pages = server.local.admin.ListAudit(admin_pb2.ListAuditRequest(call="Prepare"))
    records = [record async for page in pages for record in page.records]
    assert [[item.about for item in record.items] for record in records] == [["dry run"]]


async def test_what_hangs_on_an_authority_keeps_it_in_the_bundle(server: RunningServer, operator: Operator) -> None:
    caller, entry_id = await workload(server)
    old, new = await _forced(operator)
    shown = await operator.only("old")
    assert (shown.hanging, shown.alive) == (2, 3)  # the agent's and its workload's, of which the server's is none
    assert shown.last_hanging_not_after
    with refused(Code.FAILED_PRECONDITION, "SVID_LIVE", "ROTATION_BLOCKED"):
        await operator.step("Prune", old)
    await issue(caller, entry_id)
    rehearsed = await operator.step("Prune", old, dry_run=True)
    assert [one.kind for one in rehearsed.cut_off] == ["agent"]
    assert (await operator.step("Prune", old, force=True)).done
    assert [one.authority_id for one in await operator.status()] == [new]


async def _forced(operator: Operator) -> tuple[str, str]:
    """The server's own SVID is renewed after the activation, as it would be by itself within seconds."""
    old = (await operator.only("active")).authority_id
    new = (await operator.step("Prepare")).authority_id
    await operator.step("Activate", new, force=True)
    await operator.server.server.server_svid.renew()
    return old, new


async def test_steps_in_a_wrong_order_say_what_to_do(operator: Operator) -> None:
    active = (await operator.only("active")).authority_id
    for name, words in {
        "Activate": "only a prepared one can be activated",
        "Taint": "only an old one can be tainted",
        "Revoke": "only an old one can be revoked",
        "Prune": "only an old one can be pruned",
    }.items():
        with refused(Code.FAILED_PRECONDITION, words, "AUTHORITY_STATE"):
            await operator.step(name, active)
    old, new = await operator.replaced()
    with refused(Code.FAILED_PRECONDITION, "is active since", "AUTHORITY_STATE"):
        await operator.step("Activate", new)
    with refused(Code.FAILED_PRECONDITION, "taint it first", "AUTHORITY_STATE"):
        await operator.step("Revoke", old)
    with refused(Code.NOT_FOUND, reason="AUTHORITY_UNKNOWN"):
        await operator.step("Taint", "nobody")
    with refused(Code.INVALID_ARGUMENT, "no authority is named", "AUTHORITY_ID"):
        await operator.step("Taint")
    with refused(Code.INVALID_ARGUMENT, reason="AUTHORITY_KIND"):
        await operator.step("Prepare", kind="wit")
    with refused(Code.INVALID_ARGUMENT, reason="AUTHORITY_ID"):
        await operator.step("Prepare", "mine")


async def test_of_two_operators_at_once_one_is_told_what_the_other_did(operator: Operator) -> None:
    new = (await operator.step("Prepare")).authority_id
    outcomes = await asyncio.gather(
        operator.step("Activate", new), operator.step("Activate", new), return_exceptions=True
    )
    done = [one for one in outcomes if isinstance(one, pb.StepResponse)]
    (failed,) = [one for one in outcomes if not isinstance(one, pb.StepResponse)]
    assert len(done) == 1
    assert "is active since" in str(failed)


class TestRotate:
    async def test_from_the_first_to_the_last_step(self, operator: Operator) -> None:
        old = (await operator.only("active")).authority_id
        rehearsed = await operator.rotate(dry_run=True)
        assert (rehearsed.step, rehearsed.done, rehearsed.replacing) == ("prepare", False, old)
        steps, finished = [], False
        async with asyncio.timeout(20):
            while not finished:
                answer = await operator.rotate(replacing=old, taint=True)
                assert answer.replacing == old
                finished = answer.finished
                if answer.done:
                    steps.append(answer.step)
                elif answer.step == "revoke":  # the server's own SVID: it is being replaced
                    assert answer.waits_for_total
                    await asyncio.sleep(0.05)
        assert steps == ["prepare", "activate", "taint", "revoke"]
        (left,) = [one for one in await operator.status() if one.status != "revoked"]
        assert (left.status, left.authority_id) == ("active", answer.successor)

    async def test_it_waits_for_who_is_behind_and_says_for_whom(
        self, server: RunningServer, operator: Operator
    ) -> None:
        await workload(server)
        await operator.rotate()
        old = (await operator.only("active")).authority_id
        waits = await operator.rotate(replacing=old)
        assert (waits.step, waits.done, waits.waits_for_total) == ("activate", False, 1)
        assert (waits.agents_acked, waits.agents) == (0, 1)
        assert await operator.only("prepared")
        forced = await operator.rotate(replacing=old, force=True)
        assert (forced.step, forced.done) == ("activate", True)

    async def test_another_operator_goes_on_with_it(self, operator: Operator) -> None:
        old = (await operator.only("active")).authority_id
        await operator.rotate(replacing=old)
        assert (await operator.rotate(replacing=old, keep=True)).step == "activate"
        finished = await operator.rotate(replacing=old, keep=True)
        assert finished.finished
        assert (await operator.only("old")).authority_id == old
        assert len(await operator.status()) == 2

    async def test_two_operators_who_rotate_at_once_do_one_rotation(self, operator: Operator) -> None:
        old = (await operator.only("active")).authority_id

        async def through() -> None:
            async with asyncio.timeout(20):
                while not (await operator.rotate(replacing=old, keep=True)).finished:
                    pass

        await asyncio.gather(through(), through(), through())
        states = [one.status for one in await operator.status()]
        assert sorted(states) == ["active", "old"]

    async def test_what_cannot_be_replaced_is_refused(self, operator: Operator) -> None:
        with refused(Code.NOT_FOUND, reason="AUTHORITY_UNKNOWN"):
            await operator.rotate(replacing="nobody")
        new = (await operator.step("Prepare")).authority_id
        with refused(Code.FAILED_PRECONDITION, "it replaces, and is not replaced", "AUTHORITY_STATE"):
            await operator.rotate(replacing=new)
