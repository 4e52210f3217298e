"""Analyses of a revision: lint, the graph of who can reach whom, and what two revisions allow differently."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from ca.api.policy.desk import Desk, NumberPath, RevisionQuery
from ca.api.policy.media import DOT, HTML, JSON, preferred
from ca.api.policy.models import DifferenceDocument, GraphDocument, LintDocument
from ca.api.policy.told import finding_documents
from ca.api.policy.web import KEPT, Route, answer
from ca.service.policy.grants import Rights
from policy.diff import difference
from policy.findings import Finding
from policy.graph import Graph, graph_of
from policy.graph_dot import dot
from policy.graph_page import page
from policy.model import Target
from policy.snapshot import Snapshot, compile_set
from policy.state import State

Before = Annotated[int, Query(ge=0, le=2**53, description="The revision to compare with; 0 is the empty book.")]
COST = 10
AT_ONCE = 2


class AnalysisRoutes:
    """Each looks at what the caller may read, and at nothing else; a few run at once, beside the loop."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._turns = asyncio.Semaphore(AT_ONCE)

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route(
                verb="GET",
                path="/analyses/lint",
                endpoint=self.lint,
                summary="Find what is strange in policies",
                answer=LintDocument,
                refusals=(404,),
                cost=COST,
            ),
            Route(
                verb="GET",
                path="/analyses/graph",
                endpoint=self.graph,
                summary="Draw who can reach whom",
                answer=GraphDocument,
                refusals=(404,),
                also=(DOT, HTML),
                cost=COST,
            ),
            Route(
                verb="GET",
                path="/analyses/diff",
                endpoint=self.diff,
                summary="Say what two revisions allow differently",
                answer=DifferenceDocument,
                refusals=(404,),
                cost=COST,
            ),
            Route(
                verb="GET",
                path="/revisions/{number}/diff",
                endpoint=self.what_it_changed,
                summary="Say what a revision allows differently",
                answer=DifferenceDocument,
                cost=COST,
            ),
        )

    async def lint(self, revision: RevisionQuery = None) -> Response:
        """Findings with codes, of namespaces that the caller may read."""
        rights = await self._desk.reader()
        state = await self._desk.state(revision)
        targets = targets_of(state.snapshot, rights)
        async with self._turns:
            found = await asyncio.to_thread(_lint, state, targets)
        mine = [finding for finding in found if rights.may_read(finding.key.partition("/")[0])]
        return answer({"revision": state.revision, "findings": finding_documents(mine)})

    async def graph(self, request: Request, revision: RevisionQuery = None) -> Response:
        """As JSON, as DOT for Graphviz, or as a page to look at, by `Accept`: of services that the caller may read."""
        rights = await self._desk.reader()
        media = preferred(request.headers.get("accept"), (JSON, DOT, HTML))
        state = await self._desk.state(revision)
        async with self._turns:
            graph = await asyncio.to_thread(_graph, state, rights)
            if media == JSON:
                return answer({"revision": state.revision, "graph": await asyncio.to_thread(graph.document)})
            if media == DOT:
                return PlainTextResponse(await asyncio.to_thread(dot, graph), media_type=DOT, headers=KEPT)
            return HTMLResponse(await asyncio.to_thread(page, graph), headers=KEPT)

    async def diff(self, before: Before, after: RevisionQuery = None) -> Response:
        """Exact, by classes of requests, with one request for each change; of workloads that the caller may read."""
        return await self._difference(before, after)

    async def what_it_changed(self, number: NumberPath) -> Response:
        """The same, of a revision and the one before it."""
        return await self._difference(max(number - 1, 0), number)

    async def _difference(self, before: int, after: int | None) -> Response:
        rights = await self._desk.reader()
        old, new = await self._desk.state(before), await self._desk.state(after)
        targets = tuple(dict.fromkeys((*targets_of(old.snapshot, rights), *targets_of(new.snapshot, rights))))
        async with self._turns:
            found = await asyncio.to_thread(difference, old.snapshot, new.snapshot, targets)
            document = await asyncio.to_thread(found.document)
        return answer({"before": old.revision, "after": new.revision, "difference": document})


def targets_of(snapshot: Snapshot, rights: Rights) -> tuple[Target, ...]:
    """Those that may be read; of an ID that several workloads share, all or none."""
    return tuple(
        target
        for targets in snapshot.targets.values()
        if all(rights.may_read(one.namespace) for one in targets)
        for target in targets
    )


def _lint(state: State, targets: tuple[Target, ...]) -> tuple[Finding, ...]:
    from policy.lint import lint

    return lint(state.parsed, state.mesh, targets)


def _graph(state: State, rights: Rights) -> Graph:
    snapshot = state.snapshot
    if not rights.reads_all:
        snapshot = compile_set(
            snapshot.policies,
            state.mesh,
            targets_of(snapshot, rights),
            peers=state.parsed.peer_authentications,
            previous=snapshot,
        )
    return graph_of(snapshot, revision=state.revision)
