"""Pages of AuthZEN's searches: tokens that say where the next begins, good for the same question only."""

from __future__ import annotations

import binascii
import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policy.authzen import Malformed

USUAL, MOST = 100, 1000
MAX_TOKEN = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is asked for: results after `after`, at most `limit`. `question` tells it from others."""

    after: str
    limit: int
    question: str

    def of(self, results: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The results of this page, of all in their order, and the `page` of the answer."""
        rest = [one for one in results if one > self.after]
        shown = rest[: self.limit]
        more = len(rest) > len(shown)
        token = _token(self.question, shown[-1]) if more else ""
        return shown, {"next_token": token, "count": len(shown), "total": len(results)}


def read_page(document: Mapping[str, Any], search: str) -> Page:
    """Of a search's body. Raises Malformed, also for a token that belongs to another question."""
    found = document.get("page", {})
    if not isinstance(found, Mapping):
        raise Malformed("`page` must be a JSON object")
    limit = found.get("limit", USUAL)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise Malformed("`page.limit` must be a number above 0")
    token = found.get("token", "")
    if not isinstance(token, str):
        raise Malformed("`page.token` must be a string")
    rest = {name: value for name, value in document.items() if name != "page"}
    canonical = json.dumps([search, rest], sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")
    question = hashlib.sha256(canonical).hexdigest()[:32]
    return Page(after=_after(token, question) if token else "", limit=min(limit, MOST), question=question)


def _token(question: str, after: str) -> str:
    return urlsafe_b64encode(json.dumps([question, after]).encode()).decode("ascii")


def _after(token: str, question: str) -> str:
    try:
        if len(token) > MAX_TOKEN:
            raise ValueError
        of, after = json.loads(urlsafe_b64decode(token.encode("ascii")))
        if not isinstance(after, str):
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise Malformed("`page.token` is none that was given out here") from None
    if of != question:
        raise Malformed("`page.token` belongs to another search")
    return after
