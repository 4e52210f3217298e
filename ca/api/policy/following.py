"""Following along: how far a revision has come among the proxies, and word of the next revision."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ca.api.policy.desk import Desk
from ca.api.policy.media import EVENTS, JSON, preferred
from ca.api.policy.models import RolloutDocument, WatchDocument
from ca.api.policy.told import moment
from ca.api.policy.web import Route, answer
from ca.identity.spiffe_id import SpiffeId
from ca.service.acks import POLICY, Acknowledged, ProxyState
from ca.service.feed import Feed
from ca.service.policy.grants import Rights

T = TypeVar("T")
After = Annotated[int, Query(ge=0, le=2**53, description="The revision that the caller has.")]
Seconds = Annotated[float, Query(ge=0, le=60, description="How long to wait for a newer one, at most.")]
KEEP_ALIVE_SECONDS = 15.0


class FollowingRoutes:
    """Rollout and watch."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route(
                verb="GET",
                path="/rollout",
                endpoint=self.rollout,
                summary="Show how far policies have come",
                answer=RolloutDocument,
            ),
            Route(
                verb="GET",
                path="/watch",
                endpoint=self.watch,
                summary="Wait for the next revision",
                answer=WatchDocument,
                also=(EVENTS,),
            ),
        )

    async def rollout(self) -> Response:
        """What each agent has, and what each of its proxies made of it: of workloads that the caller may read. Agents
        are told of to who may read everything."""
        rights = await self._desk.reader()
        feed = self._desk.parts.feed
        agents, proxies = [], []
        for agent_id in sorted(feed.acks.known, key=str):
            ack = feed.acks.of(agent_id).get(POLICY)
            if rights.reads_all:
                agents.append(_agent(agent_id, ack, feed))
            if ack is not None:
                state = _state(agent_id, ack, feed)
                proxies += [_proxy(agent_id, one, ack, state) for one in ack.proxies if self._may_read(one, rights)]
        revision, pushed = self._desk.book.state.revision, self._desk.parts.pushes
        return answer({"revision": revision, "pushed": pushed, "agents": agents, "proxies": proxies})

    async def watch(self, request: Request, after: After = 0, wait_seconds: Seconds = 30.0) -> Response:
        """At once where there is a newer revision than `after`; else when there is one, or the time is over. With
        `Accept: text/event-stream`, an event for each new revision, until the caller goes."""
        await self._desk.reader()
        if preferred(request.headers.get("accept"), (JSON, EVENTS)) == EVENTS:
            with_resume = request.headers.get("last-event-id", "")
            begin = int(with_resume) if with_resume.isdecimal() and len(with_resume) < 16 else after
            return StreamingResponse(self._events(begin), media_type=EVENTS, headers={"Cache-Control": "no-store"})
        try:
            waiting = self._desk.book.wait_changed(after)
            revision = await unless_gone(request, asyncio.wait_for(waiting, wait_seconds))
        except TimeoutError:
            return answer({"revision": self._desk.book.state.revision, "changed": False})
        return answer({"revision": revision, "changed": True})

    async def _events(self, after: int) -> AsyncIterator[bytes]:
        """Rights are looked at before each word."""
        while self._desk.rights.any:
            try:
                after = await asyncio.wait_for(self._desk.book.wait_changed(after), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield b": still here\n\n"
            else:
                data = json.dumps({"revision": after, "changed": True})
                yield f"id: {after}\nevent: revision\ndata: {data}\n\n".encode()

    def _may_read(self, proxy: ProxyState, rights: Rights) -> bool:
        return rights.reads_all or self._desk.reads_target(self._desk.book.state, proxy.spiffe_id, rights)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the caller goes. Raises what it raises."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _agent(agent_id: SpiffeId, ack: Acknowledged | None, feed: Feed) -> dict[str, Any]:
    return {
        "agent": str(agent_id),
        "connected": agent_id in feed.acks.connected,
        "state": _state(agent_id, ack, feed),
        "sent": feed.policies_sent(agent_id),
        "revision": None if ack is None else ack.revision,
        "error": "" if ack is None else ack.error,
        "at": None if ack is None else moment(ack.at),
    }


def _state(agent_id: SpiffeId, ack: Acknowledged | None, feed: Feed) -> str:
    """Held against what the agent was sent: one whose policies did not change is sent nothing, and keeps the revision
    that it has."""
    if agent_id not in feed.acks.connected:
        return "away"
    if ack is not None and ack.error:
        return "failed"
    there = 0 if ack is None else ack.revision
    return "current" if feed.policies_settled(agent_id) and there >= feed.policies_sent(agent_id) else "behind"


def _proxy(agent_id: SpiffeId, proxy: ProxyState, ack: Acknowledged, agent_state: str) -> dict[str, Any]:
    return {
        "agent": str(agent_id),
        "agent_state": agent_state,
        "current": agent_state == "current" and proxy.state == "acked" and proxy.revision >= ack.revision,
        "proxy": proxy.proxy,
        "pid": proxy.pid,
        "spiffe_id": proxy.spiffe_id,
        "resource": proxy.resource,
        "revision": proxy.revision,
        "state": proxy.state,
        "detail": proxy.detail,
        "unlogged": proxy.unlogged,
        "in_force": proxy.in_force or None,
    }
