"""Who may read and write policies: grants, and those who need none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId
from ca.runtime.gate import Peer
from policy.book_values import KINDS, WORKLOAD, Grant, Key, Role
from policy.problems import shown

ALL = "*"
MAX_NAMESPACES = 1_000
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Calling(Protocol):
    """Whoever calls; `ca.api.access.Caller` is one."""

    @property
    def peer(self) -> Peer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What one caller may do. `reads` and `writes` are namespaces; `*` among those that are read is all of them."""

    is_admin: bool
    root_namespace: str
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    exempt: bool = False
    """From limits of rate: whoever came through the Unix socket."""

    def may_read(self, namespace: str) -> bool:
        return self.is_admin or bool(self.reads & {namespace, ALL}) or namespace in self.writes

    @property
    def reads_all(self) -> bool:
        """Whether there is no namespace that the caller may not read."""
        return self.is_admin or ALL in self.reads

    @property
    def any(self) -> bool:
        """Whether the caller may do anything at all."""
        return self.is_admin or bool(self.reads or self.writes)

    def may_write(self, key: Key) -> bool:
        """Policies of the root namespace are for everybody, and a Workload object says who is in which namespace."""
        if self.is_admin:
            return True
        return key.kind in KINDS and key.kind != WORKLOAD and key.namespace in self.writes - {self.root_namespace}

    def missing(self, *, write: Key | None = None, read: str = "") -> str:
        """The grant that would let the caller write an object, read a namespace, or, without either, do everything."""
        if write is not None and write.kind != WORKLOAD and write.namespace != self.root_namespace:
            return f"a grant as `{Role.AUTHOR}` for namespace {shown(write.namespace)}"
        if read:
            return f"a grant as `{Role.READER}` for namespace {shown(read)}"
        return f"a grant as `{Role.ADMIN}`"


def rights_of(caller: Calling, grants: Iterable[Grant], *, admins: frozenset[SpiffeId], root_namespace: str) -> Rights:
    """Of a caller whose SVID was verified against the bundle of its own trust domain; all of its grants together."""
    if caller.peer.transport == "unix":
        return Rights(is_admin=True, root_namespace=root_namespace, exempt=True)
    svid = caller.peer.svid
    if svid is None:
        return Rights(is_admin=False, root_namespace=root_namespace)
    mine = [grant for grant in grants if names(grant, str(svid.id))]
    return Rights(
        is_admin=svid.id in admins or any(grant.role is Role.ADMIN for grant in mine),
        root_namespace=root_namespace,
        reads=_namespaces(grant for grant in mine if grant.role is Role.READER),
        writes=_namespaces(grant for grant in mine if grant.role is Role.AUTHOR),
    )


def names(grant: Grant, spiffe_id: str) -> bool:
    """Whether a grant is for an ID."""
    if grant.spiffe_id.endswith(ALL):
        return spiffe_id.startswith(grant.spiffe_id[:-1])
    return spiffe_id == grant.spiffe_id


def check_grant(grant: Grant, *, root_namespace: str) -> None:
    """Raises InvalidArgument GRANT_INVALID."""
    if not _NAME.fullmatch(grant.name):
        raise _wrong(f"{shown(grant.name)} is no name", "lower-case letters, digits, `-` and `.`")
    _check_id(grant.spiffe_id)
    if grant.role is Role.ADMIN:
        if grant.namespaces:
            raise _wrong("an admin has no namespaces", "leave them out")
        return
    if not 0 < len(grant.namespaces) <= MAX_NAMESPACES or len(set(grant.namespaces)) < len(grant.namespaces):
        raise _wrong(
            f"a grant is for 1 to {MAX_NAMESPACES:,} namespaces, each once", "name them; a reader may have `*`"
        )
    for namespace in grant.namespaces:
        if not _NAMESPACE.fullmatch(namespace) and (namespace != ALL or grant.role is not Role.READER):
            raise _wrong(f"{shown(namespace)} is no namespace", "only a reader may have `*`")
        if namespace == root_namespace and grant.role is Role.AUTHOR:
            raise _wrong(
                f"{shown(namespace)} is the whole mesh's", "who writes its policies is an admin; a reader may have it"
            )


def _check_id(text: str) -> None:
    """An ID with a path, or the beginning of one that names its trust domain whole."""
    try:
        given = SpiffeId.parse(text.removesuffix(ALL).rstrip("/") if text.endswith(ALL) else text)
        whole = text.startswith("spiffe://") and "/" in text.removeprefix("spiffe://")
        good = whole and (text.endswith(ALL) or not given.is_trust_domain_id)
    except InvalidArgument:
        good = False
    if not good:
        raise _wrong(
            f"{shown(text)} is no SPIFFE ID, nor the beginning of one",
            "as `spiffe://example.org/team/*`: the trust domain is whole, and the asterisk is at the end",
        )


def _wrong(detail: str, hint: str) -> InvalidArgument:
    return InvalidArgument(detail, reason="GRANT_INVALID", hint=hint)


def _namespaces(grants: Iterable[Grant]) -> frozenset[str]:
    return frozenset(namespace for grant in grants for namespace in grant.namespaces)
