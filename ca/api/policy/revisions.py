"""Many changes as one revision, and the revisions that were: listed, shown, compared, gone back to, waited for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from ca.api.policy.bodies import MANY_BYTES, located, read_body, read_model, validated
from ca.api.policy.cursors import USUAL, after_of, cursor_of, next_link, no_cursor
from ca.api.policy.desk import ASKS_TO_WRITE, Cursor, Desk, DryRun, Limit, NumberPath
from ca.api.policy.models import (
    ApplyDocument,
    ChangeDocument,
    NoteDocument,
    OutcomeDocument,
    RevisionDocument,
    RevisionList,
)
from ca.api.policy.refusals import Fault, Faulty
from ca.api.policy.told import revision_document, revision_summary
from ca.api.policy.web import PREFIX, Route, answer, large_answer
from policy.book_values import KINDS, Change, Key

After = Annotated[int | None, Query(ge=0, le=2**53, description="The other revision; without it the one before.")]


class RevisionRoutes:
    """Writes of many objects, and history."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route(
                verb="POST",
                path="/apply",
                endpoint=self.apply,
                summary="Make many changes as one revision",
                answer=OutcomeDocument,
                bodies={"application/json": ApplyDocument},
                asks=ASKS_TO_WRITE,
                refusals=(404, 409, 412),
                cost=5,
                changes=True,
            ),
            Route(
                verb="GET",
                path="/revisions",
                endpoint=self.list,
                summary="List revisions, the newest first",
                answer=RevisionList,
                headers={"Link": 'the next page, with `rel="next"` (RFC 8288)'},
            ),
            Route(
                verb="GET",
                path="/revisions/{number}",
                endpoint=self.show,
                summary="Show what a revision changed",
                answer=RevisionDocument,
                refusals=(404,),
            ),
            Route(
                verb="POST",
                path="/revisions/{number}/rollback",
                endpoint=self.rollback,
                summary="Go back to a revision",
                answer=OutcomeDocument,
                bodies={"application/json": NoteDocument},
                asks=ASKS_TO_WRITE,
                refusals=(404, 409, 412),
                cost=5,
                changes=True,
            ),
        )

    async def apply(self, request: Request, dry_run: DryRun = False) -> Response:
        """What `caadmin policy apply` uses. The caller must be allowed to make every one of the changes."""
        desk = self._desk
        await desk.reader()
        body = await read_body(request, most=MANY_BYTES)
        asked = await validated(body, ApplyDocument)
        changes = [await self._change(number, one, asked.owner, body) for number, one in enumerate(asked.changes)]
        return await desk.write(
            request,
            changes,
            body=body,
            below=[f"/changes/{number}/object" for number in range(len(changes))],
            note=asked.note,
            dry_run=dry_run,
            expected_revision=asked.expected_revision,
        )

    async def list(self, request: Request, limit: Limit = USUAL, cursor: Cursor = "") -> Response:
        """Without what they changed."""
        await self._desk.reader()
        text = after_of("revisions", cursor)
        if text and not (text.isascii() and text.isdecimal() and len(text) < 16):
            raise no_cursor()
        before = int(text) if text else None
        found = await self._desk.book.revisions(before, limit + 1)
        page = found[:limit]
        told: dict[str, Any] = {"items": [revision_summary(one) for one in page], "next": None}
        headers = {}
        if len(found) > limit:
            told["next"] = cursor_of("revisions", str(page[-1].number))
            headers["Link"] = next_link(f"{PREFIX}/revisions", dict(request.query_params), told["next"])
        return answer(told, headers=headers)

    async def show(self, number: NumberPath) -> Response:
        """Each object that it changed, before and after, as far as the caller may read it."""
        rights = await self._desk.reader()
        return await large_answer(revision_document(await self._desk.book.revision(number), rights.may_read))

    async def rollback(self, request: Request, number: NumberPath, dry_run: DryRun = False) -> Response:
        """A new revision with the content of that one. The caller must be allowed to make every change of it."""
        desk = self._desk
        await desk.reader()
        asked = await read_model(request, NoteDocument)
        return await desk.roll_back(
            request, number, note=asked.note, dry_run=dry_run, expected_revision=asked.expected_revision
        )

    async def _change(self, number: int, asked: ChangeDocument, owner: str, body: Any) -> Change:
        if (asked.object is None) == (asked.delete is None):
            raise await _wrong(body, f"/changes/{number}", "either `object` or `delete`")
        if asked.delete is not None:
            key = Key(kind=asked.delete.kind, namespace=asked.delete.namespace, name=asked.delete.name)
        else:
            key = await _key_of(asked.object, f"/changes/{number}/object", body)
        return Change(
            key=key,
            body=asked.object,
            if_match=asked.if_match,
            must_be_new=asked.must_be_new,
            owner=owner,
            force=asked.force,
        )


async def _key_of(value: Any, below: str, body: Any) -> Key:
    """What an object is named, by itself. Raises Faulty."""
    metadata = value.get("metadata")
    if value.get("kind") not in KINDS:
        raise await _wrong(body, f"{below}/kind", f"one of {', '.join(KINDS)}")
    for name in ("namespace", "name"):
        if not isinstance(metadata, dict) or not isinstance(metadata.get(name), str):
            raise await _wrong(body, f"{below}/metadata/{name}", "must be a text")
    return Key(kind=value["kind"], namespace=metadata["namespace"], name=metadata["name"])


async def _wrong(body: Any, pointer: str, detail: str) -> Faulty:
    fault = Fault(code="CHANGE", detail=detail, pointer=pointer)
    return await located(body, Faulty("a change is not what is asked for", [fault], reason="BODY_INVALID"))
