"""What `caadmin policy apply` would do: files held against what the server has. Pure but for `made`, which asks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ca.cli.policy_client import PATHS, Api, ServerRefusal
from ca.cli.policy_sources import MANY, Sources, Wanted
from ca.cli.progress import progress
from ca.errors import FailedPrecondition, InvalidArgument
from policy.book_values import Key

MAX_PRUNED = 20
"""So many are pruned without --force, unless they are more than half of what the owner has."""
MAX_CHANGES = 20_000
SHOWN = 10
TRIES = 3


@dataclass(frozen=True, slots=True)
class There:
    """An object as the server has it."""

    key: Key
    etag: str
    owner: str
    revision: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options say."""

    owner: str = ""
    prune: bool = False
    force: bool = False
    take_over: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be done on top of `revision`. `taken` are those of the changed that were another's, or had no owner
    and were written otherwise. `outcome` is what the server says of it."""

    revision: int
    created: tuple[Key, ...]
    changed: tuple[Key, ...]
    unchanged: tuple[Key, ...]
    pruned: tuple[Key, ...]
    taken: Mapping[Key, str]
    changes: tuple[Mapping[str, Any], ...]
    outcome: Mapping[str, Any] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not self.changes

    def document(self) -> dict[str, Any]:
        """As JSON."""
        outcome = self.outcome or {"warnings": [], "findings": [], "difference": None}
        return {
            "revision": self.revision,
            "created": list(map(key_document, self.created)),
            "changed": list(map(key_document, self.changed)),
            "pruned": list(map(key_document, self.pruned)),
            "taken_over": [key_document(key) | {"owner": owner} for key, owner in self.taken.items()],
            "unchanged": len(self.unchanged),
            **{name: outcome[name] for name in ("warnings", "findings", "difference")},
        }

    def request(self, asked: Asked, revision: int | None) -> dict[str, Any]:
        """The body of the call that does it."""
        return {
            "changes": list(self.changes),
            "owner": asked.owner,
            "note": asked.note,
            **({} if revision is None else {"expected_revision": revision}),
        }


def key_document(key: Key) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "name": key.name}


def there(api: Api, about: int = 0) -> dict[Key, There]:
    """All that the caller may read; it is thought to be `about` so many."""
    found = {}
    with progress("comparing", about, least=MANY) as advance:
        for kind, path in PATHS.items():
            for item in api.pages(f"/{path}"):
                metadata = item["object"]["metadata"]
                key = Key(kind=kind, namespace=metadata["namespace"], name=metadata["name"])
                found[key] = There(key, item["etag"], item["owner"], item["revision"], item["object"])
                if len(found) % MANY == 0:
                    advance(min(len(found), about))
        advance(about)
    return found


def newest(api: Api) -> int:
    """The book's revision."""
    items = api.get("/revisions", limit=1)["items"]
    return int(items[0]["number"]) if items else 0


def made(api: Api, sources: Sources, asked: Asked) -> Plan:
    """Rehearsed by the server. Raises ServerRefusal with places in files, and what `compared` raises."""
    for last in range(TRIES - 1, -1, -1):
        revision = newest(api)
        plan = compared(sources.objects, there(api, len(sources.objects)), asked, revision)
        if plan.empty:
            return plan
        try:
            outcome = send(api, plan, sources, asked, dry_run=True)
        except ServerRefusal as error:
            if error.reason != "POLICY_CHANGED" or not last:
                raise
            continue
        return Plan(**{name: getattr(plan, name) for name in _PARTS}, outcome=outcome)
    raise AssertionError("the last try returns or raises")


_PARTS = ("revision", "created", "changed", "unchanged", "pruned", "taken", "changes")


def send(api: Api, plan: Plan, sources: Sources, asked: Asked, *, dry_run: bool) -> Mapping[str, Any]:
    """Does it, or says what it would do. Raises ServerRefusal with places in files."""
    try:
        answer = api.call("POST", "/apply", plan.request(asked, plan.revision), query={"dry_run": dry_run})
    except ServerRefusal as error:
        raise error.located(_places(plan.changes, sources.objects)) from error
    found: Mapping[str, Any] = answer.json
    return found


def compared(wanted: Mapping[Key, Wanted], has: Mapping[Key, There], asked: Asked, revision: int) -> Plan:
    """Raises FailedPrecondition (POLICY_OWNED, PRUNE_GUARD), InvalidArgument (USAGE)."""
    if asked.prune and not asked.owner:
        raise InvalidArgument("--prune wants --owner, whose objects are pruned", reason="USAGE")
    created, changed, unchanged = [], [], []
    taken: dict[Key, str] = {}
    for key, one in sorted(wanted.items()):
        was = has.get(key)
        if was is None:
            created.append(key)
        elif (was.etag, was.owner) == (one.etag, asked.owner):
            unchanged.append(key)
        else:
            changed.append(key)
            if was.owner != asked.owner and (was.owner or was.etag != one.etag):
                taken[key] = was.owner
    _check_owners(taken, wanted, asked)
    pruned = _pruned(wanted, has, asked)
    changes = [_written(wanted[key], has.get(key), force=key in taken) for key in (*created, *changed)]
    changes += [{"delete": key_document(key), "if_match": has[key].etag} for key in pruned]
    if len(changes) > MAX_CHANGES:
        raise InvalidArgument(
            f"{len(changes):,} changes, and at most {MAX_CHANGES:,} are one revision",
            reason="USAGE",
            hint="apply directory by directory, each with an owner of its own",
        )
    return Plan(
        revision=revision,
        created=tuple(created),
        changed=tuple(changed),
        unchanged=tuple(unchanged),
        pruned=tuple(pruned),
        taken=taken,
        changes=tuple(changes),
    )


def _written(one: Wanted, was: There | None, *, force: bool) -> dict[str, Any]:
    condition = {"must_be_new": True} if was is None else {"if_match": was.etag, "force": force}
    return {"object": dict(one.body), **condition}


def _check_owners(taken: Mapping[Key, str], wanted: Mapping[Key, Wanted], asked: Asked) -> None:
    foreign = [f"{wanted[key]} belongs to `{owner}`" for key, owner in taken.items() if owner]
    if foreign and not asked.take_over:
        raise FailedPrecondition(
            _some(foreign),
            reason="POLICY_OWNED",
            hint="apply with that --owner, change it where it is applied from, or take it over with --take-over",
        )


def _pruned(wanted: Mapping[Key, Wanted], has: Mapping[Key, There], asked: Asked) -> list[Key]:
    if not asked.prune:
        return []
    mine = [key for key, one in has.items() if one.owner == asked.owner]
    gone = sorted(key for key in mine if key not in wanted)
    if not asked.force and (len(gone) > MAX_PRUNED or 2 * len(gone) > len(mine)):
        raise FailedPrecondition(
            f"{len(gone)} of the {len(mine)} objects of `{asked.owner}` are in no file: {_some(list(map(str, gone)))}",
            reason="PRUNE_GUARD",
            hint="is a directory missing? --force prunes them all the same",
        )
    return gone


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _places(changes: Iterable[Mapping[str, Any]], wanted: Mapping[Key, Wanted]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, change in enumerate(changes):
        if "object" in change:
            body = change["object"]
            names = body["metadata"]
            key = Key(kind=body["kind"], namespace=names["namespace"], name=names["name"])
            found.update(wanted[key].places(f"/changes/{number}/object"))
    return found
