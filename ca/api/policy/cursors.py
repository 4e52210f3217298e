"""Pages by key: an opaque cursor says after what to go on, and `Link` (RFC 8288) leads there. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from ca.errors import InvalidArgument

USUAL = 100
_LONGEST = 4096


def cursor_of(kind: str, after: str) -> str:
    """Opaque to callers; `kind` says what is listed, so that a cursor of one list means nothing to another."""
    text = json.dumps([kind, after], ensure_ascii=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def after_of(kind: str, cursor: str) -> str:
    """What `cursor_of` was given; "" for none. Raises InvalidArgument (PAGE_TOKEN)."""
    if not cursor:
        return ""
    try:
        raw = base64.b64decode(cursor[:_LONGEST] + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = json.loads(raw)
    except (binascii.Error, ValueError, RecursionError):
        found = None
    match found:
        case [str(of), str(after)] if of == kind and cursor_of(kind, after) == cursor:
            return after
    raise no_cursor()


def no_cursor() -> InvalidArgument:
    """The refusal of what no list gave out."""
    return InvalidArgument(
        "this is no cursor of this list",
        reason="PAGE_TOKEN",
        hint="follow the `Link` of the answer, or pass on `next` exactly as it was returned",
    )


def next_link(path: str, query: Mapping[str, str], cursor: str) -> str:
    """The header `Link` to the next page; `path` is decoded."""
    asked = {name: value for name, value in query.items() if name != "cursor"}
    return f'<{quote(path)}?{urlencode({**asked, "cursor": cursor})}>; rel="next"'
