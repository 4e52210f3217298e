"""Options that the entry commands share, and the messages they make."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ca.cli.arguments import duration, instant, trust_domain_names, wire_id, wire_selectors
from ca.cli.entry_files import read_entries
from ca.errors import InvalidArgument
from ca.identity.spiffe_id import SpiffeId, server_id

if TYPE_CHECKING:
    from ca.proto.spire import types_pb2


class Match(StrEnum):
    """How an entry's (or agent's) selectors must relate to those of the filter."""

    EXACT = "exact"
    SUBSET = "subset"
    SUPERSET = "superset"
    ANY = "any"


SpiffeIdOption = Annotated[
    str | None, typer.Option("--spiffe-id", help="The SPIFFE ID that the workload gets.", show_default=False)
]
ParentIdOption = Annotated[
    str | None, typer.Option("--parent-id", help="The SPIFFE ID of the agent, or of an alias.", show_default=False)
]
SelectorOption = Annotated[
    list[str] | None,
    typer.Option("--selector", help="A selector, `type:value`. Give it again for more.", show_default=False),
]
DnsNameOption = Annotated[
    list[str] | None, typer.Option("--dns-name", help="A DNS name in the X.509-SVID. Repeatable.", show_default=False)
]
FederatesWithOption = Annotated[
    list[str] | None,
    typer.Option("--federates-with", help="A trust domain whose bundle comes along. Repeatable.", show_default=False),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="Entries as YAML or JSON, shaped as `entry list -o json` prints or as SPIRE's -data files; - for stdin.",
    ),
]
MatchOption = Annotated[
    Match, typer.Option("--match-selectors", help="How the entries' selectors relate to the given ones.")
]
HintFilter = Annotated[str | None, typer.Option("--hint", help="Only with this hint.", show_default=False)]
DownstreamFilter = Annotated[
    bool | None, typer.Option("--downstream/--no-downstream", help="Only (not) downstream.", show_default=False)
]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What was given on the command line; None is "not given"."""

    spiffe_id: str | None
    parent_id: str | None
    selectors: list[str] | None
    x509_svid_ttl: str | None
    jwt_svid_ttl: str | None
    dns_names: list[str] | None
    federates_with: list[str] | None
    hint: str | None
    admin: bool | None
    downstream: bool | None
    store_svid: bool | None
    expires_at: str | None

    def fill(self, entry: types_pb2.Entry) -> list[str]:
        """Write what was given into `entry`; returns the names of its fields. Raises InvalidArgument."""
        given: dict[str, Any] = {
            "spiffe_id": None if self.spiffe_id is None else wire_id(self.spiffe_id),
            "parent_id": None if self.parent_id is None else wire_id(self.parent_id),
            "selectors": _list(self.selectors, wire_selectors),
            "x509_svid_ttl": None if self.x509_svid_ttl is None else duration(self.x509_svid_ttl),
            "jwt_svid_ttl": None if self.jwt_svid_ttl is None else duration(self.jwt_svid_ttl),
            "dns_names": _list(self.dns_names, list),
            "federates_with": _list(self.federates_with, trust_domain_names),
            "hint": self.hint,
            "admin": self.admin,
            "downstream": self.downstream,
            "store_svid": self.store_svid,
            "expires_at": None if self.expires_at is None else instant(self.expires_at),
        }
        names = [name for name, value in given.items() if value is not None]
        entry.MergeFrom(type(entry)(**{name: given[name] for name in names}))
        return names


@dataclass(frozen=True)
class Filter:
    """The filters of `list` and `count`."""

    spiffe_id: str | None
    parent_id: str | None
    selectors: list[str] | None
    match: Match
    federates_with: list[str] | None
    hint: str | None
    downstream: bool | None

    def fill(self, message: Any) -> None:
        """Into a ListEntriesRequest.Filter or a CountEntriesRequest.Filter."""
        if self.spiffe_id:
            message.by_spiffe_id.CopyFrom(wire_id(self.spiffe_id))
        if self.parent_id:
            message.by_parent_id.CopyFrom(wire_id(self.parent_id))
        if self.selectors:
            message.by_selectors.CopyFrom(selector_match(self.selectors, self.match))
        if self.federates_with:
            message.by_federates_with.trust_domains.extend(trust_domain_names(self.federates_with))
            message.by_federates_with.match = message.by_federates_with.MATCH_SUPERSET
        if self.hint is not None:
            message.by_hint.value = self.hint
        if self.downstream is not None:
            message.by_downstream.value = self.downstream


NO_FILTER = Filter(None, None, None, Match.SUPERSET, None, None, None)
"""All entries."""


def selector_match(selectors: list[str], match: Match) -> types_pb2.SelectorMatch:
    """A filter by selectors. Raises InvalidArgument."""
    from ca.proto.spire import types_pb2

    behaviour = types_pb2.SelectorMatch.MatchBehavior.Value(f"MATCH_{match.name}")
    return types_pb2.SelectorMatch(selectors=wire_selectors(selectors), match=behaviour)


def parent(spiffe_id: str | None, parent_id: str | None, *, node: bool) -> str | None:
    """The parent given, or for a node alias the server's ID in the trust domain of `spiffe_id`."""
    if not node:
        return parent_id
    if parent_id is not None:
        raise InvalidArgument("--node and --parent-id exclude each other", reason="USAGE")
    return str(server_id(SpiffeId.parse(spiffe_id).trust_domain)) if spiffe_id else None


def new_entry(changes: Changes, entry_id: str) -> types_pb2.Entry:
    """The entry to create. Raises InvalidArgument when something it needs is missing."""
    from ca.proto.spire import types_pb2

    needed = {
        "--spiffe-id": changes.spiffe_id,
        "--parent-id (or --node)": changes.parent_id,
        "--selector": changes.selectors,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise InvalidArgument(f"missing {', '.join(missing)}", reason="USAGE", hint="or name a file with --file")
    entry = types_pb2.Entry(id=entry_id)
    changes.fill(entry)
    return entry


def changed_entry(changes: Changes, entry_id: str | None) -> tuple[types_pb2.Entry, types_pb2.EntryMask]:
    """The changed fields and the mask that names them. Raises InvalidArgument when there is nothing to change."""
    from ca.proto.spire import types_pb2

    if not entry_id:
        raise InvalidArgument("missing the entry's ID", reason="USAGE", hint="or name a file with --file")
    entry = types_pb2.Entry(id=entry_id)
    names = changes.fill(entry)
    if not names:
        raise InvalidArgument("nothing to change was given", reason="USAGE")
    return entry, types_pb2.EntryMask(**dict.fromkeys(names, True))


def from_file(file: Path, *others: object) -> list[types_pb2.Entry]:
    """The entries of a file, which excludes naming one by options. Raises InvalidArgument."""
    if any(others):
        raise InvalidArgument("--file and options that describe an entry exclude each other", reason="USAGE")
    return read_entries(file)


def _list(values: list[str] | None, read: Any) -> list[Any] | None:
    """None if not given; a single empty text empties the list."""
    if not values:
        return None
    return [] if values == [""] else read(values)
