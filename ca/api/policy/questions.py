"""Questions about decisions: may this request reach that workload, and why; only of workloads that may be read."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ca.api.policy.bodies import read_model
from ca.api.policy.decisions import Readable
from ca.api.policy.desk import Desk
from ca.api.policy.media import JSON
from ca.api.policy.models import (
    DecisionDocument,
    EvaluateDocument,
    ExplainDocument,
    ExplanationDocument,
    RequestDocument,
)
from ca.api.policy.refusals import Fault, Faulty
from ca.api.policy.told import verdict_document
from ca.api.policy.web import Route, answer
from ca.errors import NotFound
from ca.service.policy.grants import Rights
from policy import model
from policy.decision import Decision
from policy.decision_record import DecisionRecord, Source, record_of, refused_record
from policy.explain import explain
from policy.guard import PATH_NOT_NORMAL, refused_unread

NOT_NORMAL: dict[str, Any] = {
    "allowed": False,
    "reason": PATH_NOT_NORMAL,
    "policy": None,
    "rule": None,
    "providers": [],
    "shadow": None,
}


class QuestionRoutes:
    """Evaluate and explain."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route(
                verb="POST",
                path="/evaluate",
                endpoint=self.evaluate,
                summary="Decide one request",
                answer=DecisionDocument,
                bodies={JSON: EvaluateDocument},
                refusals=(404,),
            ),
            Route(
                verb="POST",
                path="/explain",
                endpoint=self.explain,
                summary="Decide one request, and say why",
                answer=ExplanationDocument,
                bodies={JSON: ExplainDocument},
                refusals=(404,),
            ),
        )

    async def evaluate(self, request: Request) -> Response:
        """Of a workload of a namespace that the caller may read."""
        rights = await self._desk.reader()
        asked = await read_model(request, EvaluateDocument)
        state = await self._desk.state(asked.revision)
        await self._desk.require_target(state, asked.target, rights)
        request_asked, name = as_request(asked.request), f"evaluate-{secrets.token_hex(16)}"
        decision = None
        if not refused_unread(state.snapshot, asked.target, request_asked):
            decision = state.snapshot.decide(asked.target, request_asked)
        if asked.revision is None:
            self._keep(name, asked.target, request_asked, decision, state.revision)
        verdict = NOT_NORMAL if decision is None else verdict_document(decision)
        return answer({"id": name, "target": asked.target, "revision": state.revision, "decision": verdict})

    async def explain(self, request: Request) -> Response:
        """The decisive rule; for a default denial the nearest misses, ranked by conditions that failed. A decision of
        the log is explained by the revision that made it, as far as that is kept."""
        rights = await self._desk.reader()
        asked = await read_model(request, ExplainDocument)
        if (asked.target is None) == (asked.decision is None):
            fault = Fault(code="QUESTION", detail="either `target` or `decision`")
            raise Faulty("the body is not what is asked for", [fault], reason="BODY_INVALID")
        if asked.target is not None:
            return await self._explained(rights, asked.target, as_request(asked.request), asked.revision)
        record = await self._record(asked.decision or "", rights)
        revision = record.revision if asked.revision is None else asked.revision
        return await self._explained(rights, record.target, record.request, revision, record=record)

    def _keep(self, name: str, target: str, request: model.Request, decision: Decision | None, revision: int) -> None:
        """In the decision log, as any decision by what is in force."""
        log = self._desk.parts.decisions
        if log is None:
            return
        known: dict[str, Any] = {
            "id": name,
            "at": self._desk.parts.clock.now(),
            "source": Source.EVALUATE,
            "target": target,
            "revision": revision,
            "detail": f"asked by {self._desk.author()['actor']}",
        }
        if decision is None:
            log.add(refused_record(PATH_NOT_NORMAL, request, **known))
        else:
            log.add(record_of(decision, request, **known))

    async def _explained(
        self,
        rights: Rights,
        target: str,
        request: model.Request,
        revision: int | None,
        *,
        record: DecisionRecord | None = None,
    ) -> Response:
        state = await self._desk.state(revision)
        await self._desk.require_target(state, target, rights)
        found = await asyncio.to_thread(explain, state.snapshot, target, request, revision=state.revision)
        return answer(
            {
                "target": target,
                "revision": state.revision,
                "explanation": found.document(),
                "text": found.text(),
                "record": None if record is None else record.document(),
            }
        )

    async def _record(self, number: str, rights: Rights) -> DecisionRecord:
        """Of a decision of the log; of one that the caller may not read there is none. Raises NotFound."""
        state = self._desk.book.state
        query = Readable(id=number, limit=1, may_read=lambda target: self._desk.reads_target(state, target, rights))
        page = await self._desk.found(query)
        if not page.records:
            raise NotFound(
                "there is no such decision in this server's log",
                reason="DECISION_NOT_FOUND",
                hint="an agent keeps the decisions of its proxies in a log of its own",
            )
        return page.records[0]


def as_request(asked: RequestDocument) -> model.Request:
    """What policies look at."""
    return model.Request(
        principal=None if asked.principal is None else asked.principal.removeprefix("spiffe://"),
        source_ip=asked.source_ip,
        remote_ip=asked.remote_ip,
        destination_ip=asked.destination_ip,
        destination_port=asked.destination_port,
        sni=asked.sni,
        http=asked.http,
        method=asked.method,
        path=asked.path,
        host=asked.host,
        headers={name.lower(): value for name, value in asked.headers.items()},
        claims=asked.claims,
        metadata=asked.metadata,
    )
