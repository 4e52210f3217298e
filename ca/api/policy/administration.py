"""Grants and invariants: who may write policies, and what no policy may ever allow."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ca.api.access import current_caller
from ca.api.policy.administration_models import (
    GrantDocument,
    GrantList,
    GrantTold,
    InvariantsAsked,
    InvariantsDocument,
)
from ca.api.policy.bodies import read_model, read_text
from ca.api.policy.conditions import Condition, for_change, for_write, idempotency_key, unchanged, unsaid
from ca.api.policy.cursors import USUAL, after_of, cursor_of, next_link
from ca.api.policy.desk import ASKS_TO_WRITE, Cursor, Desk, DryRun, Limit, NamePath
from ca.api.policy.etags import quoted
from ca.api.policy.media import JSON, YAML, media_type
from ca.api.policy.objects import ETAG, IF_MATCH, IF_NONE_MATCH, LINK
from ca.api.policy.told import grant_document
from ca.api.policy.web import PREFIX, Route, answer, large_answer
from ca.errors import AlreadyExists, FailedPrecondition
from ca.service.policy.grant_book import etag_of_text
from ca.service.policy.grants import Rights, check_grant
from ca.service.policy.refusals import changed
from policy.book_values import Grant, Role

KNOWN = {"If-None-Match": "Entity tags that the caller has."}


class AdministrationRoutes:
    """For admins alone."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (*self._of_grants(), *self._of_invariants())

    def _of_grants(self) -> tuple[Route, ...]:
        return (
            Route(
                verb="GET",
                path="/grants",
                endpoint=self.list_grants,
                summary="List the grants",
                answer=GrantList,
                headers=LINK,
            ),
            Route(
                verb="GET",
                path="/grants/{name}",
                endpoint=self.show_grant,
                summary="Show a grant",
                answer=GrantTold,
                headers=ETAG,
                asks=KNOWN,
                refusals=(404,),
                not_modified=True,
            ),
            Route(
                verb="PUT",
                path="/grants/{name}",
                endpoint=self.put_grant,
                summary="Create or replace a grant",
                answer=GrantTold,
                bodies={JSON: GrantDocument},
                headers=ETAG,
                asks=IF_MATCH | IF_NONE_MATCH | ASKS_TO_WRITE,
                refusals=(409, 412, 428),
                created=True,
            ),
            Route(
                verb="DELETE",
                path="/grants/{name}",
                endpoint=self.delete_grant,
                summary="Delete a grant",
                answer=GrantTold,
                asks=IF_MATCH | ASKS_TO_WRITE,
                refusals=(404, 412, 428),
            ),
        )

    def _of_invariants(self) -> tuple[Route, ...]:
        return (
            Route(
                verb="GET",
                path="/invariants",
                endpoint=self.show_invariants,
                summary="Show the invariants",
                answer=InvariantsDocument,
                headers=ETAG,
                asks=KNOWN,
                not_modified=True,
            ),
            Route(
                verb="PUT",
                path="/invariants",
                endpoint=self.put_invariants,
                summary="Replace the invariants",
                answer=InvariantsDocument,
                bodies={JSON: InvariantsAsked, YAML: {"type": "string"}},
                headers=ETAG,
                asks=IF_MATCH | ASKS_TO_WRITE,
                refusals=(409, 412, 428),
            ),
        )

    async def list_grants(self, request: Request, limit: Limit = USUAL, cursor: Cursor = "") -> Response:
        """By name."""
        rights = await self._desk.admin("read grants")
        after = after_of("grants", cursor)
        found = [grant for grant in await self._desk.book.grants(rights=rights) if grant.name > after]
        told: dict[str, Any] = {"items": [grant_document(grant) for grant in found[:limit]], "next": None}
        headers = {}
        if len(found) > limit:
            told["next"] = cursor_of("grants", found[limit - 1].name)
            headers["Link"] = next_link(f"{PREFIX}/grants", dict(request.query_params), told["next"])
        return await large_answer(told, headers=headers)

    async def show_grant(self, request: Request, name: NamePath) -> Response:
        """One grant."""
        rights = await self._desk.admin("read grants")
        grant = await self._desk.book.get_grant(name, rights=rights)
        return _told(request, grant_document(grant), grant.etag)

    async def put_grant(self, request: Request, name: NamePath, dry_run: DryRun = False) -> Response:
        """Holds from the next call of who is named on."""
        desk = self._desk
        rights = await desk.admin("write grants")
        asked = await read_model(request, GrantDocument)
        before = await self._named(name, rights)
        condition = for_write(request, None if before is None else before.etag)
        grant = Grant(name=name, spiffe_id=asked.spiffe_id, role=Role(asked.role), namespaces=tuple(asked.namespaces))
        if dry_run:
            _rehearse(grant, before, condition, rights)
            return answer(await self._rehearsed(name, grant, rights))
        try:
            made = await desk.book.write_grant(
                grant,
                rights=rights,
                if_match=condition.if_match,
                must_be_new=condition.must_be_new,
                idempotency_key=idempotency_key(request),
                **desk.author(),
            )
        except AlreadyExists as error:
            raise condition.refusal(error) from error
        status = 201 if condition.must_be_new else 200
        return answer(grant_document(made), status=status, headers={"ETag": quoted(made.etag)})

    async def delete_grant(self, request: Request, name: NamePath, dry_run: DryRun = False) -> Response:
        """The grant as it was."""
        desk = self._desk
        rights = await desk.admin("write grants")
        key = idempotency_key(request)
        before = await self._named(name, rights)
        if before is None and (dry_run or not key):  # with a key it may be gone because this was asked before
            before = await desk.book.get_grant(name, rights=rights)
        condition = for_change(request, None if before is None else before.etag)
        if dry_run and before is not None:
            if condition.if_match != before.etag:
                raise changed("the grant")
            return answer(await self._rehearsed(name, None, rights))
        gone = await desk.book.delete_grant(
            name, rights=rights, if_match=condition.if_match, idempotency_key=key, **desk.author()
        )
        return answer(grant_document(gone))

    async def _rehearsed(self, name: str, after: Grant | None, rights: Rights) -> dict[str, Any]:
        """The grant as it would be, or as it is that would go."""
        svid = current_caller().peer.svid
        caller = "" if svid is None else str(svid.id)
        shown, effect = await self._desk.book.rehearse_grant(name, after, rights=rights, caller=caller)
        return {**grant_document(shown), "effect": list(effect)}

    async def _named(self, name: str, rights: Rights) -> Grant | None:
        return next((grant for grant in await self._desk.book.grants(rights=rights) if grant.name == name), None)

    async def show_invariants(self, request: Request) -> Response:
        """They name who must not reach whom."""
        rights = await self._desk.admin("read the invariants")
        text, etag = await self._desk.book.get_invariants(rights=rights)
        return _told(request, {"text": text, "etag": etag}, etag)

    async def put_invariants(self, request: Request, dry_run: DryRun = False) -> Response:
        """They must hold by the newest revision, and from then on each write is held to them. The first ones need no
        `If-Match`."""
        desk = self._desk
        rights = await desk.admin("write the invariants")
        wanted = await _invariants(request)
        text, etag = await desk.book.get_invariants(rights=rights)
        condition, key = for_write(request, etag), idempotency_key(request)
        if condition.if_match is None and condition.said:
            raise changed("what is there")
        if condition.if_match is None and text and (dry_run or not key):
            raise unsaid()
        try:
            made = await desk.book.set_invariants(
                wanted,
                rights=rights,
                if_match=condition.if_match or etag_of_text(""),
                idempotency_key=key,
                dry_run=dry_run,
                **desk.author(),
            )
        except FailedPrecondition as error:
            raise (error if condition.said else unsaid()) from error
        return answer({"text": wanted, "etag": made}, headers={} if dry_run else {"ETag": quoted(made)})


def _told(request: Request, document: dict[str, Any], etag: str) -> Response:
    headers = {"ETag": quoted(etag)}
    if unchanged(request, etag):
        return Response(status_code=304, headers=headers)
    return answer(document, headers=headers)


def _rehearse(grant: Grant, before: Grant | None, condition: Condition, rights: Rights) -> None:
    """What the book would refuse."""
    check_grant(grant, root_namespace=rights.root_namespace)
    if condition.must_be_new and before is not None:
        raise condition.refusal(AlreadyExists("there is such a grant"))
    if not condition.must_be_new and (before is None or before.etag != condition.if_match):
        raise changed("the grant")


async def _invariants(request: Request) -> str:
    header, encoding = (request.headers.get(name, "") for name in ("content-type", "content-encoding"))
    if media_type(header, (JSON, YAML), encoding=encoding.strip().lower()) == YAML:
        return await read_text(request)
    return (await read_model(request, InvariantsAsked)).text
