"""AuthZEN 1.0 over HTTP: the specification's answers and errors, and our grants: nobody asks about others' targets.

Whoever may read the policies of a workload's namespaces may ask about that workload, and sees it in searches.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ca.api.policy.bodies import QUESTION_BYTES, read_body
from ca.api.policy.desk import AT_ONCE, Desk
from ca.api.policy.refusals import Faulty, HttpRefusal, problem_document
from ca.api.policy.web import Route, answer
from ca.errors import BurgeeError, Denied, InvalidArgument
from ca.service.policy.grants import Rights
from policy import authzen
from policy.authzen import Malformed, Question, Wanted
from policy.authzen_pages import Page, read_page
from policy.decision_record import Source, record_of, refused_record
from policy.model import Request as Asked
from policy.state import State

BASE = "/access/v1"
METADATA = "/.well-known/authzen-configuration"
BATCH_BYTES = 4 * QUESTION_BYTES
REQUEST_ID = "x-request-id"
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
_ECHOED = re.compile(r"[\x20-\x7e]{1,8192}")


class _Nothing(BaseModel):
    """The answers are the specification's, not ours to describe."""


class AuthzenRoute(Route):
    """One endpoint, which is not below our own prefix."""

    @property
    def tier(self) -> str:
        return self.path


class PlainErrors(APIRoute):
    """Errors as the specification has them (§10.1.2, Table 1): a status and a message; a request's id comes back."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handler(request)
            except RequestValidationError:
                response = _plain(400, "the request is malformed", {})
            except HTTPException as error:
                response = _plain(error.status_code, str(error.detail), dict(error.headers or {}))
            except BurgeeError as error:
                response = _refusal(error)
            return _identified(request, response)

        return handled


def _refusal(error: BurgeeError) -> Response:
    status, _, headers = problem_document(error)
    # A type of content, or of encoding, that is not read is a bad request here.
    if isinstance(error, HttpRefusal) and status == 415:
        status = 400
    detail = error.detail
    if isinstance(error, Faulty) and error.faults:
        detail = f"{detail}: {error.faults[0].detail}"
    return _plain(status, f"{detail} ({error.reason})", headers)


def _plain(status: int, message: str, headers: dict[str, str]) -> Response:
    return Response(message, status_code=status, media_type="text/plain", headers=headers)


def _identified(request: Request, response: Response) -> Response:
    name = request.headers.get(REQUEST_ID, "")
    if _ECHOED.fullmatch(name):
        response.headers[REQUEST_ID] = name
    return response


def mount(app: FastAPI, desk: Desk) -> None:
    """Adds every endpoint; each has a row in the tier table."""
    asked = Authzen(desk)
    for route in asked.routes():
        app.router.add_api_route(
            route.path,
            route.endpoint,
            methods=[route.verb],
            response_model=None,
            summary=route.summary,
            include_in_schema=False,
            dependencies=[Depends(_entered(desk, route))],
            route_class_override=PlainErrors,
        )


def _entered(desk: Desk, route: Route) -> Callable[[], Awaitable[None]]:
    async def entered() -> None:
        await desk.enter(route)

    return entered


class Authzen:
    """The endpoints."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._turns = asyncio.Semaphore(AT_ONCE)

    def routes(self) -> tuple[AuthzenRoute, ...]:
        """All of them."""

        def post(path: str, endpoint: Callable[..., Any], summary: str, cost: float) -> AuthzenRoute:
            return AuthzenRoute(
                verb="POST", path=BASE + path, endpoint=endpoint, summary=summary, answer=_Nothing, cost=cost
            )

        return (
            post("/evaluation", self.evaluation, "Evaluate an access", 1),
            post("/evaluations", self.evaluations, "Evaluate several accesses", 10),
            post("/search/subject", self.search_subject, "Search subjects", 10),
            post("/search/resource", self.search_resource, "Search resources", 10),
            post("/search/action", self.search_action, "Search actions", 10),
            AuthzenRoute(
                verb="GET",
                path=METADATA,
                endpoint=self.metadata,
                summary="Show where the endpoints are",
                answer=_Nothing,
            ),
        )

    async def metadata(self, request: Request) -> Response:
        """§9: the addresses are those by which the caller has come."""
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise InvalidArgument("the request's `Host` is no host", reason="HOST_INVALID")
        base = f"https://{host}"
        return answer(
            {
                "policy_decision_point": base,
                "access_evaluation_endpoint": f"{base}{BASE}/evaluation",
                "access_evaluations_endpoint": f"{base}{BASE}/evaluations",
                **{f"search_{one}_endpoint": f"{base}{BASE}/search/{one}" for one in Wanted},
            }
        )

    async def evaluation(self, request: Request) -> Response:
        """§6: one decision."""
        rights = await self._desk.reader()
        question = _read(authzen.read_question, await _body(request))
        return answer(await self._evaluated(question, self._desk.book.state, rights))

    async def evaluations(self, request: Request) -> Response:
        """§7: several decisions, of one revision; without `evaluations` it is the same as one."""
        rights = await self._desk.reader()
        asked = _read(authzen.read_questions, await _body(request, most=BATCH_BYTES))
        state = self._desk.book.state
        if isinstance(asked, Question):
            return answer(await self._evaluated(asked, state, rights))
        found: list[dict[str, Any]] = []
        for item in asked.items:
            found.append(await self._item(item, state, rights))
            if asked.semantic.ends_with(found[-1]["decision"]):
                break
        return answer({"evaluations": found})

    async def _item(self, item: Question | Malformed, state: State, rights: Rights) -> dict[str, Any]:
        if isinstance(item, Malformed):
            return authzen.error_document(400, str(item))
        try:
            return await self._evaluated(item, state, rights)
        except Denied as error:
            return authzen.error_document(403, error.detail)
        except InvalidArgument as error:
            return authzen.error_document(400, error.detail)

    async def _evaluated(self, question: Question, state: State, rights: Rights) -> dict[str, Any]:
        request = _read(authzen.request_of, question)
        if request is not None:
            await self._desk.require_target(state, question.target, rights)
        answered = authzen.decide(question, request, state.snapshot)
        name = f"authzen-{secrets.token_hex(16)}"
        if request is not None:
            self._keep(answered, request, question.target, name, state.revision)
        return authzen.evaluation_document(answered, id=name, revision=state.revision)

    def _keep(self, answered: authzen.Answered, request: Asked, target: str, name: str, revision: int) -> None:
        log = self._desk.parts.decisions
        if log is None:
            return
        known: dict[str, Any] = {
            "id": name,
            "at": self._desk.parts.clock.now(),
            "source": Source.AUTHZEN,
            "target": target,
        }
        if answered.decision is None:
            log.add(refused_record(answered.reason, request, revision=revision, **known))
        else:
            known |= {"allowed": answered.allowed, "reason": answered.reason, "revision": revision}
            log.add(record_of(answered.decision, request, **known))

    async def search_subject(self, request: Request) -> Response:
        """§8.4: callers that are known here, or that the target's policies name."""
        question, page, state, rights = await self._search(request, Wanted.SUBJECT)
        assert question.subject is not None
        kind = question.subject.type

        def subjects() -> list[str]:
            if kind == authzen.ANONYMOUS:
                known = [authzen.ANONYMOUS]
            elif kind == authzen.WORKLOAD:
                readable = (one for one in state.snapshot.targets if self._desk.reads_target(state, one, rights))
                named = (authzen.SPIFFE + one for one in authzen.principals_named(state.snapshot, question.target))
                known = sorted({*readable, *named})
            else:
                known = []
            return [one for one in known if _may(question, state, subject=one)]

        return await self._page(question, page, state, rights, subjects, lambda one: {"type": kind, "id": one})

    async def search_resource(self, request: Request) -> Response:
        """§8.5: workloads that the caller may ask about."""
        question, page, state, rights = await self._search(request, Wanted.RESOURCE)
        assert question.resource is not None
        kind = question.resource.type

        def resources() -> list[str]:
            known = sorted(state.snapshot.targets) if kind == authzen.WORKLOAD else []
            readable = [one for one in known if self._desk.reads_target(state, one, rights)]
            return [one for one in readable if _may(question, state, resource=one)]

        found, told = page.of(await _sought(resources, self._turns))
        return answer({"results": [{"type": kind, "id": one} for one in found], "page": told})

    async def search_action(self, request: Request) -> Response:
        """§8.6: the usual methods, those that the target's policies name, and connecting."""
        question, page, state, rights = await self._search(request, Wanted.ACTION)

        def actions() -> list[str]:
            named = authzen.methods_named(state.snapshot, question.target)
            return [
                one for one in sorted({*authzen.METHODS, authzen.CONNECT, *named}) if _may(question, state, action=one)
            ]

        return await self._page(question, page, state, rights, actions, lambda one: {"name": one})

    async def _page(
        self,
        question: Question,
        page: Page,
        state: State,
        rights: Rights,
        seek: Callable[[], list[str]],
        shown: Callable[[str], dict[str, str]],
    ) -> Response:
        """Of a target that the caller may not ask about nothing is found, as of one that there is not."""
        readable = self._desk.reads_target(state, question.target, rights)
        found, told = page.of(await _sought(seek, self._turns) if readable else [])
        return answer({"results": [shown(one) for one in found], "page": told})

    async def _search(self, request: Request, wanted: Wanted) -> tuple[Question, Page, State, Rights]:
        rights = await self._desk.reader()
        body = await _body(request)
        question = _read(lambda value: authzen.read_search(value, wanted), body)
        return question, _read(lambda value: read_page(value, wanted), body), self._desk.book.state, rights


async def _sought(seek: Callable[[], list[str]], turns: asyncio.Semaphore) -> Sequence[str]:
    """A property that is not of its type is found when the first request is made of it."""
    try:
        async with turns:
            return await asyncio.to_thread(seek)
    except Malformed as error:
        raise _bad(error) from None


def _may(question: Question, state: State, *, subject: str = "", resource: str = "", action: str = "") -> bool:
    made = authzen.with_ids(question, subject=subject, resource=resource, action=action)
    return authzen.decide(made, authzen.request_of(made), state.snapshot).allowed


async def _body(request: Request, *, most: int = QUESTION_BYTES) -> Any:
    return (await read_body(request, most=most)).value


def _read(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except Malformed as error:
        raise _bad(error) from None


def _bad(error: Malformed) -> InvalidArgument:
    return InvalidArgument(str(error), reason="BODY_INVALID")
