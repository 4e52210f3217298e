"""burgee.authority.v1.Authorities: rotating the authorities by hand, and seeing beforehand what that does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from ca.api.convert.authorities import authority_message, blocker_messages, outlook_message
from ca.api.convert.ids import seconds
from ca.authority.actions import Activate, Prune, Revoke, RevokeUpstream, Taint, TaintUpstream
from ca.authority.state import Authority, AuthorityKind
from ca.errors import FailedPrecondition, InvalidArgument
from ca.ports import Clock
from ca.proto.burgee import authority_pb2 as pb
from ca.proto.burgee import authority_pb2_grpc
from ca.service.authority_outlook import Outlooks
from ca.service.rotation import AuthorityManager
from ca.service.rotation_guard_port import Blocker
from ca.service.rotation_plan import Step
from ca.service.rotation_walk import Walk, WalkStep, to_be_replaced, walk

MOST_NAMED = 1000
"""Of those whom a step cuts off so many are named; the others are counted."""

Context = grpc.aio.ServicerContext[Any, Any]


class AuthoritiesService(authority_pb2_grpc.AuthoritiesServicer):
    """Every step is the manager's; what is added is what it would do, and the walk through a whole rotation."""

    def __init__(self, *, manager: AuthorityManager, outlooks: Outlooks, clock: Clock) -> None:
        self._manager = manager
        self._outlooks = outlooks
        self._clock = clock

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.AuthoritiesStatus:
        found = await self._outlooks.all(_kind(request.kind) if request.kind else None)
        return pb.AuthoritiesStatus(
            server=self._outlooks.server,
            now=seconds(self._clock.now()),
            authorities=[outlook_message(one, min(request.named, MOST_NAMED)) for one in found],
            agents=max((one.agents for one in found), default=0),
            has_upstream=self._manager.has_upstream,
        )

    async def Prepare(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        kind = _kind(request.kind)
        if request.authority_id:
            raise InvalidArgument("a new authority gets its ID when it is made", reason="AUTHORITY_ID")
        if request.dry_run:
            return pb.StepResponse()
        made = await self._manager.prepare(kind)
        return pb.StepResponse(done=True, authority=authority_message(made), authority_id=made.authority_id)

    async def Activate(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        kind, name = _named(request)
        return await self._step(
            request, Activate(name), kind, lambda: self._manager.activate(kind, name, force=request.force)
        )

    async def Taint(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        kind, name = _named(request)
        if self._is_root(name):
            return await self._upstream_step(request, TaintUpstream(name), lambda: self._manager.taint_upstream(name))
        self._refuse_below_root(name)
        return await self._step(request, Taint(name), kind, lambda: self._manager.taint(kind, name))

    async def Revoke(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        kind, name = _named(request)
        if self._is_root(name):
            return await self._upstream_step(
                request, RevokeUpstream(name), lambda: self._manager.revoke_upstream(name, force=request.force)
            )
        self._refuse_below_root(name)
        return await self._step(
            request, Revoke(name), kind, lambda: self._manager.revoke(kind, name, force=request.force)
        )

    async def Prune(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        kind, name = _named(request)
        return await self._step(
            request, Prune(name), kind, lambda: self._manager.prune(kind, name, force=request.force)
        )

    async def Rotate(self, request: pb.RotateRequest, context: Context) -> pb.RotateResponse:
        kind = _kind(request.kind)
        replacing = request.replacing or to_be_replaced(self._manager.authorities, kind, taint=request.taint)
        found = self._walk(request, replacing)
        try:
            blockers = await self._in_the_way(found, kind)
            wait = bool(blockers) and not request.force
            done = not wait and not request.dry_run and found.step is not WalkStep.FINISHED
            if done:
                await self._take(found, kind, force=request.force)
        except FailedPrecondition as error:
            if not _overtaken(error, found, self._walk(request, replacing)):
                raise
            return await self._rotated(replacing, found, (), done=False)
        return await self._rotated(replacing, found, blockers if wait else (), done=done)

    def _walk(self, request: pb.RotateRequest, replacing: str) -> Walk:
        own, kind = self._manager.authorities, _kind(request.kind)
        roots = self._manager.roots_to_build_on
        return walk(own, kind=kind, replacing=replacing, taint=request.taint, keep=request.keep, roots=roots)

    async def _rotated(
        self, replacing: str, found: Walk, blockers: Sequence[Blocker], *, done: bool
    ) -> pb.RotateResponse:
        old = await self._outlooks.of(found.replacing)
        new = await self._outlooks.of(found.successor) if found.successor is not None else None
        return pb.RotateResponse(
            replacing=replacing,
            successor=found.successor.authority_id if found.successor is not None else "",
            step=found.step.value,
            done=done,
            finished=found.step is WalkStep.FINISHED or (done and found.step.is_last),
            waits_for=blocker_messages(blockers, MOST_NAMED),
            waits_for_total=len(blockers),
            hanging=old.hanging,
            alive=old.alive,
            agents_acked=new.agents_acked if new is not None else 0,
            agents=new.agents if new is not None else 0,
        )

    async def _in_the_way(self, found: Walk, kind: AuthorityKind) -> Sequence[Blocker]:
        step = _planned(found)
        return () if step is None else (await self._manager.plan(step, kind=kind)).blockers

    async def _take(self, found: Walk, kind: AuthorityKind, *, force: bool) -> None:
        manager, target = self._manager, found.target
        if target is None:
            await manager.prepare(kind)
            return
        name, root = target.authority_id, target.upstream_authority_id
        match found.step, found.root:
            case WalkStep.ACTIVATE, _:
                await manager.activate(kind, name, force=force)
            case WalkStep.TAINT, False:
                await manager.taint(kind, name)
            case WalkStep.TAINT, True:
                await manager.taint_upstream(root)
            case WalkStep.REVOKE, False:
                await manager.revoke(kind, name, force=force)
            case WalkStep.REVOKE, True:
                await manager.revoke_upstream(root, force=force)
            case WalkStep.PRUNE, _:
                await manager.prune(kind, name, force=force)

    async def _step(
        self, request: pb.StepRequest, step: Step, kind: AuthorityKind, take: Callable[[], Awaitable[Authority]]
    ) -> pb.StepResponse:
        plan = await self._manager.plan(step, kind=kind)
        after = plan.targets[0] if request.dry_run else await take()
        return _answer(request, after, plan.blockers)

    async def _upstream_step(
        self, request: pb.StepRequest, step: Step, take: Callable[[], Awaitable[Sequence[Authority]]]
    ) -> pb.StepResponse:
        plan = await self._manager.plan(step)
        if not request.dry_run:
            await take()
        return _answer(request, None, plan.blockers)

    def _is_root(self, name: str) -> bool:
        """Whether it is a root of the upstream, and none of a server's authorities."""
        known = {one.authority_id for one in self._manager.journal.authorities}
        return name not in known and any(member.authority_id == name for member in self._manager.journal.upstream)

    def _refuse_below_root(self, name: str) -> None:
        """The bundle holds the root alone: of its intermediates no agent and no verifier would hear."""
        for one in self._manager.journal.authorities:
            if one.authority_id == name and one.upstream_authority_id:
                raise FailedPrecondition(
                    f"x509 authority `{name}` hangs on root `{one.upstream_authority_id}`: only that is in the bundle",
                    reason="UPSTREAM_CONFIGURED",
                    hint="activate an authority below another root, then name the root instead",
                )


def _overtaken(error: FailedPrecondition, found: Walk, now: Walk) -> bool:
    """Whether another operator took, or takes, the step at the same time: the next call sees what it did."""
    moved = (now.step, now.target) != (found.step, found.target) or found.step is WalkStep.PREPARE
    return error.reason == "AUTHORITY_STATE" and moved


def _planned(found: Walk) -> Step | None:
    """Steps that can be in somebody's way."""
    if found.target is None:
        return None
    name, root = found.target.authority_id, found.target.upstream_authority_id
    match found.step:
        case WalkStep.ACTIVATE:
            return Activate(name)
        case WalkStep.REVOKE:
            return RevokeUpstream(root) if found.root else Revoke(name)
        case WalkStep.PRUNE:
            return Prune(name)
    return None


def _answer(request: pb.StepRequest, authority: Authority | None, blockers: Sequence[Blocker]) -> pb.StepResponse:
    return pb.StepResponse(
        authority=None if authority is None else authority_message(authority),
        authority_id=request.authority_id,
        done=not request.dry_run,
        cut_off=blocker_messages(blockers, MOST_NAMED),
        cut_off_total=len(blockers),
    )


def _named(request: pb.StepRequest) -> tuple[AuthorityKind, str]:
    if not request.authority_id:
        raise InvalidArgument(
            "no authority is named", reason="AUTHORITY_ID", hint="`caadmin ca status` shows their IDs"
        )
    return _kind(request.kind), request.authority_id


def _kind(name: str) -> AuthorityKind:
    try:
        return AuthorityKind(name)
    except ValueError:
        raise InvalidArgument(
            f"`{name[:32]}` is no kind of authority", reason="AUTHORITY_KIND", hint="x509 or jwt"
        ) from None
