"""Set filters in SQL: exact, subset, superset, any, on a table with one row per member of each set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, Table, func, select

from ca.errors import InvalidArgument
from ca.store.values import Match


def match_set(
    query: Select[Any],
    *,
    owner: Table,
    owner_count: Column[int],
    members: Table,
    member: Column[Any],
    wanted: Iterable[Any],
    match: Match,
) -> Select[Any]:
    """Narrow `query` to owners whose set matches; `owner_count` is the size of an owner's set.

    Raises InvalidArgument for an empty filter. An owner with an empty set never matches.
    """
    values = sorted(set(wanted))
    if not values:
        raise InvalidArgument("empty set in filter", reason="FILTER_EMPTY_SET")
    # How many of the wanted members each owner has; owners with none are not in it.
    hits = (
        select(members.c.position, func.count().label("hits"))
        .where(member.in_(values))
        .group_by(members.c.position)
        .subquery()
    )
    query = query.join(hits, hits.c.position == owner.c.position)
    conditions: dict[Match, list[ColumnElement[bool]]] = {
        Match.EXACT: [hits.c.hits == len(values), owner_count == len(values)],
        Match.SUBSET: [hits.c.hits == owner_count],
        Match.SUPERSET: [hits.c.hits == len(values)],
        Match.ANY: [],
    }
    return query.where(*conditions[match])
