"""A request that shows what an analysis says, as JSON and in words; and what its row asks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from policy.classes.rows import Row
from policy.model import Request
from policy.words import clean, phrase

_NAMES = tuple(field.name for field in fields(Request))


def document(request: Request) -> dict[str, Any]:
    """The request as JSON, without what is absent."""
    found = {name: getattr(request, name) for name in _NAMES}
    return {name: value for name, value in found.items() if value not in (None, {}, ())}


def words(request: Request) -> str:
    """The request in one line."""
    caller = request.principal if request.principal is not None else "a caller without certificate"
    said = [clean(caller)]
    if request.http:
        said += [clean(text) for text in (request.method, request.path) if text is not None]
    else:
        said.append("by a connection that is not HTTP")
    more = {
        "host": request.host,
        "port": request.destination_port,
        "source address": request.source_ip,
        "client's address": request.remote_ip,
        "destination address": request.destination_ip,
        "SNI": request.sni,
        **{f"header {name}": value for name, value in request.headers.items()},
        "token": request.claims or None,
        "metadata": request.metadata or None,
    }
    said += [f"{name} {clean(repr(v) if v == '' else str(v))}" for name, v in more.items() if v is not None]
    return ", ".join(said)


def asked(row: Row) -> tuple[str, ...]:
    """What a row asks, one phrase for each clause; empty for everything."""
    return tuple(
        phrase(literal.clause) if literal.clause is not None else f"condition {clean(literal.words, 400)}"
        for literal in row.literals
    )


def rule_name(row: Row) -> str:
    """`ALLOW shop/orders-read#0`."""
    if row.policy is None:
        return "the namespace's default"
    return f"{row.policy.action} {clean(row.policy.id)}#{row.number}"
