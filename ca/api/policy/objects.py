"""Objects over REST: policies, authentications and Workload objects, by kind, namespace and name."""

from __future__ import annotations

import hashlib
import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from ca.api.policy.bodies import Body, located, read_body
from ca.api.policy.conditions import for_change, for_write, unchanged
from ca.api.policy.cursors import USUAL, after_of, cursor_of, next_link
from ca.api.policy.desk import ASKS_TO_WRITE, Cursor, Desk, DryRun, Limit, NamePath, NamespacePath, Note
from ca.api.policy.etags import quoted
from ca.api.policy.json_patch import PatchRefused, patched
from ca.api.policy.media import JSON, JSON_PATCH, MERGE_PATCH, YAML
from ca.api.policy.merge_patch import merged
from ca.api.policy.models import ObjectList, OutcomeDocument, PolicyObject
from ca.api.policy.refusals import Fault, Faulty, HttpRefusal
from ca.api.policy.strict_json import check_value
from ca.api.policy.told import stored_document
from ca.api.policy.web import PATHS, PREFIX, Route, answer, large_answer
from ca.errors import AlreadyExists
from ca.service.policy.refusals import changed
from policy.book_values import Change, Key, Stored

KindPath = Annotated[str, Path(description="The kind of objects.", json_schema_extra={"enum": list(PATHS)})]
Force = Annotated[bool, Query(description="Take the object over from who applies it.")]

IF_MATCH = {"If-Match": "The entity tag that it must still have; required to change what is there."}
IF_NONE_MATCH = {"If-None-Match": "`*`: only create, change nothing that is there."}
ETAG = {"ETag": "the strong entity tag"}
LINK = {"Link": 'the next page, with `rel="next"` (RFC 8288)'}
_ONE = "/{kind:kind}/{namespace}/{name}"
_PATCH: dict[str, Any] = {"type": "object", "title": "a merge patch (RFC 7396)"}
_OPERATIONS: dict[str, Any] = {
    "type": "array",
    "title": "a JSON patch (RFC 6902)",
    "maxItems": 1000,
    "items": {
        "type": "object",
        "required": ["op", "path"],
        "properties": {
            "op": {"enum": ["add", "remove", "replace", "move", "copy", "test"]},
            "path": {"type": "string"},
            "from": {"type": "string"},
            "value": {},
        },
    },
}


class ObjectRoutes:
    """Reads and writes of single objects."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (*self._reads(), *self._writes())

    def _reads(self) -> tuple[Route, ...]:
        return (
            Route(
                verb="GET",
                path="/{kind:kind}",
                endpoint=self.list_all,
                summary="List the objects of a kind",
                answer=ObjectList,
                headers=LINK,
            ),
            Route(
                verb="GET",
                path="/{kind:kind}/{namespace}",
                endpoint=self.list_namespace,
                summary="List the objects of a kind and namespace",
                answer=ObjectList,
                headers=LINK,
            ),
            Route(
                verb="GET",
                path=_ONE,
                endpoint=self.show,
                summary="Show an object",
                answer=PolicyObject,
                headers=ETAG
                | {"Burgee-Revision": "the one in which it came to be so", "Burgee-Owner": "its owner mark"},
                asks={"If-None-Match": "Entity tags that the caller has: 304 where the object still has one of them."},
                refusals=(404,),
                not_modified=True,
            ),
        )

    def _writes(self) -> tuple[Route, ...]:
        return (
            Route(
                verb="PUT",
                path=_ONE,
                endpoint=self.put,
                summary="Create or replace an object",
                bodies={JSON: PolicyObject, YAML: PolicyObject},
                asks=IF_MATCH | IF_NONE_MATCH | ASKS_TO_WRITE,
                refusals=(409, 412, 428),
                created=True,
                answer=OutcomeDocument,
                headers=ETAG,
            ),
            Route(
                verb="PATCH",
                path=_ONE,
                endpoint=self.patch,
                summary="Change parts of an object",
                bodies={MERGE_PATCH: _PATCH, JSON_PATCH: _OPERATIONS},
                asks=IF_MATCH | ASKS_TO_WRITE,
                refusals=(404, 409, 412, 428),
                answer=OutcomeDocument,
                headers=ETAG,
            ),
            Route(
                verb="DELETE",
                path=_ONE,
                endpoint=self.delete,
                summary="Delete an object",
                answer=OutcomeDocument,
                asks=IF_MATCH | ASKS_TO_WRITE,
                refusals=(404, 409, 412, 428),
            ),
        )

    async def list_all(self, request: Request, kind: KindPath, limit: Limit = USUAL, cursor: Cursor = "") -> Response:
        """Of all namespaces that the caller may read, by namespace and name."""
        return await self._page(request, kind, None, limit, cursor)

    async def list_namespace(
        self,
        request: Request,
        kind: KindPath,
        namespace: NamespacePath,
        limit: Limit = USUAL,
        cursor: Cursor = "",
    ) -> Response:
        """By name."""
        return await self._page(request, kind, namespace, limit, cursor)

    async def show(self, request: Request, kind: KindPath, namespace: NamespacePath, name: NamePath) -> Response:
        """The object alone, as it was written, so that it can be changed and put back."""
        await self._desk.reader(namespace)
        stored = await self._desk.book.get(Key(kind=PATHS[kind], namespace=namespace, name=name))
        headers = {"ETag": quoted(stored.etag), "Burgee-Revision": str(stored.revision)}
        if stored.owner:
            headers["Burgee-Owner"] = stored.owner
        if unchanged(request, stored.etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return answer(dict(stored.body), headers=headers)

    async def put(
        self,
        request: Request,
        kind: KindPath,
        namespace: NamespacePath,
        name: NamePath,
        dry_run: DryRun = False,
        force: Force = False,
        note: Note = "",
    ) -> Response:
        """Creates what is not there. What is there is replaced only if `If-Match` names its entity tag."""
        key = Key(kind=PATHS[kind], namespace=namespace, name=name)
        await self._desk.writer(key)
        body = await read_body(request, accepted=(JSON, YAML))
        condition = for_write(request, self._etag(key))
        change = Change(
            key=key,
            body=await _object(body, key),
            if_match=condition.if_match,
            must_be_new=condition.must_be_new,
            force=force,
        )
        try:
            return await self._desk.write(
                request, [change], body=body, note=note, dry_run=dry_run, created=condition.must_be_new
            )
        except AlreadyExists as error:
            raise condition.refusal(error) from error

    async def patch(
        self,
        request: Request,
        kind: KindPath,
        namespace: NamespacePath,
        name: NamePath,
        dry_run: DryRun = False,
        force: Force = False,
        note: Note = "",
    ) -> Response:
        """By a merge patch or a JSON patch; all operations of it hold, or none."""
        key = Key(kind=PATHS[kind], namespace=namespace, name=name)
        await self._desk.writer(key)
        body = await read_body(request, accepted=(MERGE_PATCH, JSON_PATCH))
        asked = [str(key), request.headers.get("if-match"), body.media, force, note]
        digest = hashlib.sha256(json.dumps(asked).encode() + body.data).digest()

        def make(stored: Stored) -> Change:
            condition = for_change(request, stored.etag)
            if condition.if_match != stored.etag:
                raise changed(str(key))
            return Change(key=key, body=_for_key(_patched(stored, body), key), if_match=stored.etag, force=force)

        return await self._desk.change(request, key, make, digest=digest, note=note, dry_run=dry_run)

    async def delete(
        self,
        request: Request,
        kind: KindPath,
        namespace: NamespacePath,
        name: NamePath,
        dry_run: DryRun = False,
        force: Force = False,
        note: Note = "",
    ) -> Response:
        """Only if `If-Match` names its entity tag."""
        key = Key(kind=PATHS[kind], namespace=namespace, name=name)
        await self._desk.writer(key)
        condition = for_change(request, self._etag(key))
        change = Change(key=key, body=None, if_match=condition.if_match, force=force)
        return await self._desk.write(request, [change], note=note, dry_run=dry_run)

    async def _page(self, request: Request, kind: str, namespace: str | None, limit: int, cursor: str) -> Response:
        rights = await self._desk.reader(namespace)
        of = f"{kind}/{namespace or ''}"
        page = await self._desk.book.list(PATHS[kind], namespace, after_of(of, cursor), limit, readable=rights.may_read)
        told: dict[str, Any] = {"items": [stored_document(stored) for stored in page.items], "next": None}
        headers = {}
        if page.next_token:
            told["next"] = cursor_of(of, page.next_token)
            path = f"{PREFIX}/{kind}" + ("" if namespace is None else f"/{namespace}")
            headers["Link"] = next_link(path, dict(request.query_params), told["next"])
        return await large_answer(told, headers=headers)

    def _etag(self, key: Key) -> str | None:
        stored = self._desk.book.state.objects.get(key)
        return None if stored is None else stored.etag


def _patched(stored: Stored, body: Body) -> Any:
    """Raises Faulty, HttpRefusal (409)."""
    if body.media == MERGE_PATCH:
        changed = merged(dict(stored.body), body.value)
    else:
        try:
            changed = patched(dict(stored.body), body.value)
        except PatchRefused as error:
            if error.failed_test:
                raise HttpRefusal(
                    HTTPStatus.CONFLICT, f"the test at `{error.pointer}` of the patch fails", reason="PATCH_TEST"
                ) from None
            fault = Fault(code="PATCH", detail=str(error), pointer=error.pointer)
            raise Faulty("the patch cannot be applied", [fault], reason="PATCH_INVALID") from None
    check_value(changed)
    return changed


async def _object(body: Body, key: Key) -> dict[str, Any]:
    """The object of a body. Raises Faulty."""
    try:
        return _for_key(body.value, key)
    except Faulty as error:
        raise await located(body, error) from None


def _for_key(value: Any, key: Key) -> dict[str, Any]:
    """The object, which must be the one that the path names; its name and namespace may be left to the path. Raises
    Faulty."""
    if not isinstance(value, dict) or not isinstance(value.get("metadata", {}), dict):
        raise _mismatch("must be a mapping", "/metadata" if isinstance(value, dict) else "")
    metadata = {"namespace": key.namespace, "name": key.name, **value.get("metadata", {})}
    found = {**value, "metadata": metadata}
    for pointer, said, wanted in (
        ("/kind", found.get("kind", key.kind), key.kind),
        ("/metadata/namespace", metadata["namespace"], key.namespace),
        ("/metadata/name", metadata["name"], key.name),
    ):
        if said != wanted:
            raise _mismatch(f"the path says `{wanted}`", pointer)
    return found


def _mismatch(detail: str, pointer: str) -> Faulty:
    fault = Fault(code="MISMATCH", detail=detail, pointer=pointer)
    return Faulty("the body is not the object of the path", [fault], reason="BODY_MISMATCH")
