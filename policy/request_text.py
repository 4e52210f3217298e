"""A request as it is written in a file: its names are those of a decision's record, so that one becomes the other."""

from __future__ import annotations

from typing import Any

from policy.documents import Node
from policy.fields import Place
from policy.model import Request
from policy.paths import without_query

FIELDS = (
    *("principal", "source_ip", "remote_ip", "destination_ip", "port", "sni", "http", "method", "path", "host"),
    *("headers", "claims", "metadata"),
)
_TEXTS = ("source_ip", "remote_ip", "destination_ip", "sni", "method", "host")
MAX_PORT = 65535


def read_request(place: Place) -> Request:
    """A request; notes what is wrong. `principal` may have `spiffe://`, and `path` a query, which rules do not see."""
    fields = place.fields(FIELDS)
    texts = {name: fields[name].text() for name in _TEXTS if name in fields}
    principal = fields["principal"].text() if "principal" in fields else None
    path = fields["path"].text() if "path" in fields else None
    headers = fields["headers"].labels() if "headers" in fields else ()
    return Request(
        principal=None if principal is None else principal.removeprefix("spiffe://"),
        path=None if path is None else without_query(path),
        destination_port=_port(fields.get("port")),
        http=fields["http"].boolean() if "http" in fields else True,
        headers={name.lower(): text for name, text in headers},
        claims=_mapping(fields.get("claims")),
        metadata=_metadata(fields.get("metadata")),
        **texts,
    )


def _port(place: Place | None) -> int | None:
    if place is None:
        return None
    value = place.node.value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PORT:
        place.refuse("P115", "must be a port", "a number from 0 to 65535")
        return None
    return value


def _mapping(place: Place | None) -> dict[str, Any] | None:
    if place is None:
        return None
    if not isinstance(place.node.value, dict):
        place.refuse("P005", f"must be a mapping, not {place.node.kind}")
        return None
    return {name: plain(node) for name, node in place.node.value.items()}


def _metadata(place: Place | None) -> dict[str, dict[str, Any]]:
    found = _mapping(place) or {}
    if place is not None and not all(isinstance(inner, dict) for inner in found.values()):
        place.refuse("P005", "must be a mapping of filters, each with a mapping")
        return {}
    return found


def plain(node: Node) -> Any:
    """A value without its places."""
    if isinstance(node.value, dict):
        return {name: plain(inner) for name, inner in node.value.items()}
    return [plain(inner) for inner in node.value] if isinstance(node.value, list) else node.value
