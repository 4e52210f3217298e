"""Media types: what a body is, and what a caller takes as an answer (RFC 9110 §8.3, §12.5.1). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from ca.api.policy.refusals import HttpRefusal

JSON = "application/json"
YAML = "application/yaml"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
EVENTS = "text/event-stream"
HTML = "text/html"
DOT = "text/vnd.graphviz"


def media_type(header: str, accepted: Sequence[str], *, encoding: str = "") -> str:
    """Which of `accepted` a body is. Raises HttpRefusal (415)."""
    name, *parameters = (part.strip().lower() for part in header.split(";"))
    charset = next((value for value in parameters if value.startswith("charset=")), "charset=utf-8")
    if name in accepted and charset.removeprefix("charset=").strip('"') == "utf-8" and encoding in ("", "identity"):
        return name
    raise HttpRefusal(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "the body is not of a type that is read here",
        reason="MEDIA_TYPE",
        hint=f"send {' or '.join(accepted)} in UTF-8, not compressed, and say so in `Content-Type`",
        headers={"Accept": ", ".join(accepted), "Accept-Patch": ", ".join(accepted)},
    )


def preferred(header: str | None, offered: Sequence[str]) -> str:
    """The one of `offered` that a caller likes best; the first where it does not care. Raises HttpRefusal (406)."""
    if header is None or not header.strip():
        return offered[0]
    ranges = [_range(part) for part in header.lower().split(",")[:64]]
    best = max(offered, key=lambda name: _quality(name, ranges))
    if _quality(best, ranges) > 0:
        return best
    raise HttpRefusal(
        HTTPStatus.NOT_ACCEPTABLE,
        "nothing that is had here is of a type that is accepted",
        reason="NOT_ACCEPTABLE",
        hint=f"accept {' or '.join(offered)}",
    )


def _range(part: str) -> tuple[str, float]:
    """`text/*;q=0.5` → ("text/*", 0.5)."""
    name, *parameters = (piece.strip() for piece in part.split(";"))
    weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
    try:
        quality = float(weight)
    except ValueError:
        quality = 0.0
    return name, quality if 0 <= quality <= 1 else 0.0


def _quality(name: str, ranges: Sequence[tuple[str, float]]) -> float:
    """By the most specific range (§12.5.1)."""
    for wanted in (name, f"{name.partition('/')[0]}/*", "*/*"):
        found = [quality for one, quality in ranges if one == wanted]
        if found:
            return max(found)
    return 0.0
