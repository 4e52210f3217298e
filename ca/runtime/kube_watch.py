"""Lists and watches of the Kubernetes API: what is asked for, and what comes back as values."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote as escaped

from ca.errors import NotFound, Unavailable
from ca.runtime.http_answer import Answer

Object = dict[str, Any]

PAGE_SIZE = 250
WATCH_SECONDS = 300
IDLE_SECONDS = 150.0
"""A watch is silent no longer than this: a bookmark comes about once a minute."""
MAX_ITEMS = 1_000_000
WHOLE = "application/json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""What to accept where name, labels and annotations are enough: nodes list their images otherwise."""
_KINDS = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"})
_TRIES = 3


class Event(NamedTuple):
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK, whose object has a resourceVersion and no more."""

    type: str
    object: Object


class Listing(NamedTuple):
    """Every object as of one moment, from which on `resource_version` can be watched."""

    items: list[Object]
    resource_version: str


def with_query(path: str, **values: str) -> str:
    """`path` may have a query already."""
    query = "&".join(f"{name}={escaped(value, safe='')}" for name, value in values.items())
    return f"{path}{'&' if '?' in path else '?'}{query}"


def watch_path(path: str, resource_version: str, seconds: int) -> str:
    return with_query(
        path,
        watch="true",
        allowWatchBookmarks="true",
        resourceVersion=resource_version,
        timeoutSeconds=str(seconds),
    )


def event_of(value: Object) -> Event:
    """Raises Unavailable KUBE_ANSWER for what is none."""
    kind, found = value.get("type"), value.get("object")
    if not isinstance(kind, str) or kind not in _KINDS or not isinstance(found, dict):
        raise _unreadable("an event that is none")
    return Event(kind, found)


def status_answer(status: Object) -> Answer:
    """An ERROR of a watch as the answer it would have been at its beginning."""
    code = status.get("code")
    return Answer(code if isinstance(code, int) else 500, {}, json.dumps(status).encode())


def version_of(value: Object) -> str:
    """`metadata.resourceVersion`. Raises Unavailable KUBE_ANSWER where it is missing."""
    meta = value.get("metadata")
    found = meta.get("resourceVersion") if isinstance(meta, dict) else None
    if not isinstance(found, str) or not found:
        raise _unreadable("an object without a version")
    return found


async def whole_list(get: Callable[[str], Awaitable[Object]], path: str, page_size: int) -> Listing:
    """Page by page. One that ended too late for its next page begins anew; one that is too large gets smaller pages."""
    for attempt in range(_TRIES):
        try:
            return await _pages(get, path, page_size)
        except NotFound as error:
            if error.reason != "KUBE_GONE" or attempt == _TRIES - 1:
                raise
        except Unavailable as error:
            if error.reason != "HTTP_TOO_LARGE" or page_size == 1:
                raise
            return await whole_list(get, path, max(1, page_size // 8))
    raise _unreadable("lists that end too early")


async def _pages(get: Callable[[str], Awaitable[Object]], path: str, page_size: int) -> Listing:
    items: list[Object] = []
    asked = with_query(path, limit=str(page_size))
    while True:
        page = await get(asked)
        found = page.get("items")
        if found is not None and (not isinstance(found, list) or not all(isinstance(one, dict) for one in found)):
            raise _unreadable("a list that is none")
        items += found or ()
        if len(items) > MAX_ITEMS:
            raise _unreadable(f"more than {MAX_ITEMS} objects")
        version = version_of(page)
        more = page["metadata"].get("continue")
        if not more:
            return Listing(items, version)
        asked = with_query(path, limit=str(page_size), **{"continue": str(more)})


def _unreadable(what: str) -> Unavailable:
    return Unavailable(f"a Kubernetes API answered with {what}", reason="KUBE_ANSWER")
