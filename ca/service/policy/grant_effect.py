"""What a grant that comes, changes or goes gives and takes, in words, beside all other grants. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ca.identity.spiffe_id import SpiffeId
from ca.service.policy.grants import ALL, Rights, names
from policy.book_values import Grant, Role

SHOWN = 10


def effect(
    before: Grant | None,
    after: Grant | None,
    others: Iterable[Grant],
    *,
    caller: str,
    admins: frozenset[SpiffeId],
    root_namespace: str,
) -> tuple[str, ...]:
    """Of whom the grant names, and of the caller besides where it is one of them; `others` are the other grants."""
    kept = list(others)
    subjects = dict.fromkeys(grant.spiffe_id for grant in (before, after) if grant is not None)
    if caller and any(grant is not None and names(grant, caller) for grant in (before, after)):
        subjects.setdefault(caller)

    def rights(subject: str, grant: Grant | None) -> Rights:
        mine = [one for one in (*kept, grant) if one is not None and _covers(one.spiffe_id, subject)]
        return Rights(
            is_admin=subject in set(map(str, admins)) or any(one.role is Role.ADMIN for one in mine),
            root_namespace=root_namespace,
            reads=_namespaces(mine, Role.READER) | _namespaces(mine, Role.AUTHOR),
            writes=_namespaces(mine, Role.AUTHOR),
        )

    lines: list[str] = []
    for subject in subjects:
        found = list(_changes(rights(subject, before), rights(subject, after)))
        who = f"you (`{subject}`)" if subject == caller else _named(subject)
        lines += [f"{who} would {one}" for one in found or ["gain and lose nothing: it has as much without"]]
    return tuple(lines)


def _changes(before: Rights, after: Rights) -> Iterator[str]:
    if before.is_admin or after.is_admin:
        if not before.is_admin:
            yield f"gain everything, as an admin; before: {_all(before)}"
        if not after.is_admin:
            yield f"lose everything that an admin may; left: {_all(after)}"
        return
    for verb, one, other in (("gain", after, before), ("lose", before, after)):
        for what, has, had in (("read", one.reads, other.reads), ("write", one.writes, other.writes)):
            if ALL in has and ALL not in had:
                but = f" but {_list(had)}" if had and verb == "lose" else ""
                yield f"{verb} the right to {what} policies of every namespace{but}"
            elif ALL not in had and has - had:
                yield f"{verb} the right to {what} policies of {_list(has - had)}"


def _all(rights: Rights) -> str:
    reads = "every namespace" if ALL in rights.reads else _list(rights.reads)
    told = [f"to read policies of {reads}"] if rights.reads else []
    told += [f"to write policies of {_list(rights.writes)}"] if rights.writes else []
    return " and ".join(told) or "nothing"


def _list(namespaces: Iterable[str]) -> str:
    found = [f"`{one}`" for one in sorted(namespaces)]
    more = len(found) - SHOWN
    return ", ".join(found[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _covers(pattern: str, subject: str) -> bool:
    """Whether a grant for `pattern` is one for all that `subject` names."""
    if pattern.endswith(ALL):
        return subject.removesuffix(ALL).startswith(pattern[:-1])
    return pattern == subject


def _named(subject: str) -> str:
    if subject.endswith(ALL):
        return f"whoever's ID begins with `{subject[:-1]}`"
    return f"`{subject}`"


def _namespaces(grants: Iterable[Grant], role: Role) -> frozenset[str]:
    return frozenset(namespace for grant in grants if grant.role is role for namespace in grant.namespaces)
