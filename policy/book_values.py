"""What the book of policies holds and is asked for, as frozen values: objects, changes, revisions and grants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from policy.findings import Finding
from policy.problems import Problem

if TYPE_CHECKING:  # which an agent has no use for
    from policy.diff import Difference

AUTHORIZATION, REQUEST, PEER, WORKLOAD = (
    "AuthorizationPolicy",
    "RequestAuthentication",
    "PeerAuthentication",
    "Workload",
)
KINDS = (AUTHORIZATION, REQUEST, PEER, WORKLOAD)

Body = Mapping[str, Any]


def canonical(body: Body) -> bytes:
    """An object as bytes, whatever the order of its keys: JSON with sorted keys and without spaces."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def etag_of(body: Body) -> str:
    """The same for the same content, anywhere and any time."""
    return hashlib.sha256(canonical(body)).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """What names an object. A Workload has a namespace, too."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An object as it is in the book. `revision` is the one in which it came to be so; `owner` is the mark of who
    applies it, empty for one that was written by hand."""

    key: Key
    body: Body
    """The whole object: apiVersion, kind, metadata, spec."""
    etag: str
    revision: int
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What somebody wants of one object. Without `body` it is deleted.

    `if_match` is the etag that it must still have. `owner` is who applies it.
    """

    key: Key
    body: Body | None
    if_match: str | None = None
    must_be_new: bool = False
    owner: str = ""
    force: bool = False
    """Takes the object over from another owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a revision did to one object; None where there was, or is, none."""

    key: Key
    before: Body | None
    after: Body | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One write: all of it holds, or none. `count` objects changed; in lists of revisions `changes` is left out."""

    number: int
    at: datetime
    actor: str
    note: str = ""
    changes: tuple[Changed, ...] = ()
    count: int = 0


class Role(StrEnum):
    """A reader reads; an author reads and writes within namespaces; an admin does everything, grants included."""

    READER = "reader"
    AUTHOR = "author"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Who may do what. `spiffe_id` is exact, or has an asterisk at its end. Readers and authors have namespaces, a
    reader perhaps `*` for all of them; an admin has none, and needs none."""

    name: str
    spiffe_id: str
    role: Role
    namespaces: tuple[str, ...] = ()
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a write did, or would do, to `changed` objects. `revision` is None for a dry run, and where nothing
    changes."""

    revision: Revision | None
    changed: int = 0
    objects: tuple[Stored, ...] = ()
    warnings: tuple[Problem, ...] = ()
    findings: tuple[Finding, ...] = ()
    difference: Difference | None = None
